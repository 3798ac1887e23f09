//! What each tier is told: the text of its configuration file, rendered purely from what was chosen for the machine.

use mallee_service::config::{Daemon, Store};
use mallee_tiers::Role;
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::machine::{Machine, Outside, Tier};
use crate::state::State;

/// The configuration file of one tier. `own` is what the operator's own file says, which has the last word.
pub fn render(state: &State, machine: &Machine, tier: &Tier, own: &str) -> Result<String> {
    let role = tier.role.as_str();
    let mut table = table_of(&Daemon {
        name: tier.name.clone(),
        zone: tier.zone.clone(),
        state: state.tier(role),
        listen: tier.listen.clone(),
        announce: tier.listen.first().map(ToString::to_string),
        cloud_controller: match tier.role {
            Role::CloudController => String::new(),
            _ => machine.cloud_controller.clone(),
        },
        join_token: (tier.role != Role::CloudController).then(|| state.token(role)),
        store: Store::Sqlite,
    })?;
    match tier.role {
        Role::CloudController => cloud_controller(&mut table, state, machine, tier)?,
        Role::Walrus if !machine.region.is_empty() => {
            table.insert("region".to_owned(), machine.region.clone().into());
        }
        Role::StorageController => {
            // Machines beside this one have volumes, too, once it has an address for them.
            if let Some(public) = tier.listen.iter().find(|address| !address.ip().is_loopback()) {
                let mut nbd = Table::new();
                nbd.insert("address".to_owned(), public.ip().to_string().into());
                nbd.insert("local_node".to_owned(), machine.node.clone().into());
                table.insert("nbd".to_owned(), nbd.into());
            }
        }
        Role::NodeController => {
            if let Some(engines) = &machine.engines {
                table.insert("engines".to_owned(), value_of(engines)?);
            }
        }
        _ => {}
    }
    let own_path = state.own_config(role);
    let own = own.parse().map_err(|e| Error::refused(format!("{} is no TOML: {e}", own_path.display())))?;
    overlay(&mut table, own);
    let text = toml::to_string(&table).map_err(unwritable)?;
    Ok(format!(
        "# Written by `mallee` from {} and {}; changes are lost at the next `mallee up`.\n{text}",
        state.machine().display(),
        own_path.display()
    ))
}

/// Puts `own` over `table`: tables are joined, everything else is replaced.
fn overlay(table: &mut Table, own: Table) {
    for (key, value) in own {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(there)), Value::Table(own)) => overlay(there, own),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

fn cloud_controller(table: &mut Table, state: &State, machine: &Machine, tier: &Tier) -> Result<()> {
    table.insert("region".to_owned(), machine.region.clone().into());
    table.insert("zones".to_owned(), value_of(&machine.zones)?);
    let names: Vec<String> = tier.listen.iter().map(|address| address.ip().to_string()).collect();
    table.insert("public_names".to_owned(), value_of(&names)?);
    if let Ok(url) = machine.url(Role::Walrus) {
        table.insert("s3_url".to_owned(), url.into());
    }
    let Some(engines) = &machine.engines else {
        return Ok(());
    };
    let mut network = Table::new();
    if engines.central.is_some() {
        let socket = mallee_engines::Layout::new(state.engines())?.northbound_socket();
        network.insert("northbound".to_owned(), value_of(&socket)?);
    }
    if let Some(address) = engines.central.as_ref().and_then(|central| central.southbound) {
        network.insert("southbound".to_owned(), format!("ssl:{address}").into());
    }
    if let Some(link) = &engines.namespace {
        let outside = Outside::of(link)?;
        network.insert("outside".to_owned(), outside.network.into());
        network.insert("gateway".to_owned(), outside.gateway.to_string().into());
        network.insert("routers".to_owned(), value_of(&outside.routers)?);
        network.insert("elastic".to_owned(), outside.elastic.into());
        network.insert("physical".to_owned(), mallee_engines::ovs::PHYSICAL_NETWORK.into());
    }
    if let Some(node) = &engines.node {
        network.insert("gateway_chassis".to_owned(), value_of(&[&node.system_id])?);
    }
    table.insert("network".to_owned(), network.into());
    Ok(())
}

fn value_of<T: serde::Serialize>(value: &T) -> Result<Value> {
    Value::try_from(value).map_err(unwritable)
}

fn table_of<T: serde::Serialize>(value: &T) -> Result<Table> {
    Table::try_from(value).map_err(unwritable)
}

fn unwritable(error: toml::ser::Error) -> Error {
    Error::refused(format!("the configuration cannot be written as TOML: {error}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mallee_engines::EnginesConfig;
    use serde::Deserialize;

    use super::*;
    use crate::machine::{Wanted, listen};

    fn machine() -> Machine {
        let tier = |role: Role, zone: &str, name: &str, port: u16| Tier {
            role,
            zone: zone.to_owned(),
            name: name.to_owned(),
            listen: listen(port, &[]),
        };
        Machine {
            region: "mallee-1".to_owned(),
            zones: vec!["mallee-1a".to_owned()],
            node: "n1".to_owned(),
            cloud_controller: "127.0.0.1:8773".to_owned(),
            programs: "/usr/bin".into(),
            engines: Some(EnginesConfig::one_machine("/s/engines", "n1")),
            internet: None,
            tiers: vec![
                tier(Role::CloudController, "", "cloud-controller", 8773),
                tier(Role::Walrus, "", "walrus", 8777),
                tier(Role::NodeController, "mallee-1a", "n1", 8775),
            ],
            wanted: Wanted::Everything,
        }
    }

    #[test]
    fn every_tier_reads_back_what_daemons_have_in_common() {
        #[derive(Deserialize)]
        struct File {
            #[serde(flatten)]
            daemon: Daemon,
        }
        let (state, machine) = (State::new(Path::new("/s")).unwrap(), machine());
        for tier in &machine.tiers {
            let text = render(&state, &machine, tier, "").unwrap();
            let file: File = toml::from_str(&text).unwrap();
            assert_eq!(file.daemon.listen, tier.listen);
            assert_eq!(file.daemon.join_token.is_some(), tier.role != Role::CloudController, "{text}");
        }
    }

    #[test]
    fn the_node_is_told_its_engines_and_the_cloud_its_network() {
        let (state, machine) = (State::new(Path::new("/s")).unwrap(), machine());
        let node = render(&state, &machine, &machine.tiers[2], "").unwrap();
        let table: Table = node.parse().unwrap();
        let engines: EnginesConfig = table["engines"].clone().try_into().unwrap();
        assert_eq!(engines.namespace.unwrap().name, "mallee");
        let cloud: Table = render(&state, &machine, &machine.tiers[0], "").unwrap().parse().unwrap();
        let network = cloud["network"].as_table().unwrap();
        assert_eq!(network["northbound"].as_str(), Some("/s/engines/ovn/nb.sock"));
        assert_eq!(network["routers"][0].as_str(), Some("172.29.0.2"));
        assert_eq!(network["gateway_chassis"][0].as_str(), Some("n1"));
    }

    #[test]
    fn the_operators_own_words_are_the_last() {
        let (state, machine) = (State::new(Path::new("/s")).unwrap(), machine());
        let own =
            "host_suffixes = ['s3.example']\nregion = 'r'\n[webhooks]\na = 'http://h'\n[store]\nengine = 'postgres'\n";
        let table: Table = render(&state, &machine, &machine.tiers[1], own).unwrap().parse().unwrap();
        assert_eq!(table["host_suffixes"][0].as_str(), Some("s3.example"));
        assert_eq!((table["region"].as_str(), table["name"].as_str()), (Some("r"), Some("walrus")));
        assert_eq!(table["store"]["engine"].as_str(), Some("postgres"));
        let error = render(&state, &machine, &machine.tiers[1], "host_suffixes = [").unwrap_err();
        assert!(error.to_string().contains("walrus.own.toml"), "{error}");
    }
}
