//! OVN's northbound database, as the configuration says where it is: a socket beside the cloud-controller, or servers on other
//! machines, over TLS. There this tier shows its own certificate, and believes one of the cloud's CA only.

use std::path::PathBuf;

use mallee_ovsdb::{Client, Remotes, Tls};
use mallee_service::Identity;

use crate::Config;

pub struct Database {
    pub remotes: Remotes,
    /// Whom the servers' certificates must be for.
    name: Option<String>,
    /// Read at each connection: certificates are renewed.
    identity: PathBuf,
}

impl Database {
    /// None: this cloud has no network.
    pub fn of(config: &Config) -> Option<Self> {
        Some(Self {
            remotes: config.network.northbound.clone()?,
            name: config.network.northbound_name.clone(),
            identity: config.daemon.tls_dir(),
        })
    }

    pub async fn connect(&self) -> Result<Client, String> {
        let tls = if self.remotes.needs_tls() { Some(self.tls().map_err(|e| e.to_string())?) } else { None };
        Client::connect(&self.remotes, tls.as_ref()).await.map_err(|e| e.to_string())
    }

    fn tls(&self) -> Result<Tls, mallee_service::tls::TlsError> {
        let config = Identity::load(&self.identity)?.client_config()?;
        Ok(Tls { config: config.into(), name: self.name.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process, time::Duration};

    use mallee_ovsdb::Op;
    use mallee_service::{Reconciler, pki};
    use mallee_tiers::{Peer, Role};

    use super::*;
    use crate::{ec2::rehearsal::Rehearsal, join, network::Network};

    struct Server(process::Child);

    impl Drop for Server {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    /// An ovsdb-server with the certificate in `dir`, on a free port of this machine and on `dir/nb.sock`.
    async fn serve(dir: &Path) -> (Server, u16) {
        let made = process::Command::new("ovsdb-tool")
            .arg("create")
            .arg(dir.join("nb.db"))
            .arg("/usr/share/ovn/ovn-nb.ovsschema")
            .status();
        assert!(made.unwrap().success());
        let option = |name: &str, file: &str| format!("--{name}={}", dir.join(file).display());
        let server = process::Command::new("ovsdb-server")
            .args(["-vconsole:off", "-vsyslog:off", "--remote=pssl:0:127.0.0.1"])
            .arg(format!("--remote=punix:{}", dir.join("nb.sock").display()))
            .args([option("unixctl", "nb.ctl"), option("log-file", "log"), option("private-key", "key.pem")])
            .args([option("certificate", "cert.pem"), option("ca-cert", "ca.pem")])
            .arg(dir.join("nb.db"))
            .spawn()
            .unwrap();
        let server = Server(server);
        for _ in 0..3000 {
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            if let Some(port) = log.lines().find_map(|l| l.split_once("listening on port ")?.1.trim().parse().ok()) {
                return (server, port);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("ovsdb-server did not come up");
    }

    #[tokio::test]
    async fn the_database_on_another_machine_is_kept_right_over_tls_and_no_other() {
        let a = Rehearsal::new().await;
        join::own_identity(&a.cloud.config, &a.cloud.ca).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let key = pki::new_key_pem().unwrap();
        let peer = Peer::new(Role::CloudController, "", "northbound");
        let certificate = a.cloud.ca.sign(&peer, &pki::signing_request(&key).unwrap()).unwrap();
        for (file, text) in [("key.pem", &key), ("cert.pem", &certificate), ("ca.pem", &a.cloud.ca.certificate_pem)] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let (_server, port) = serve(dir.path()).await;
        let routers = async || {
            let client = Client::connect_unix(dir.path().join("nb.sock")).await.unwrap();
            let select = vec![Op::select("Logical_Router", [], &["name"])];
            client.transact("OVN_Northbound", select).await.unwrap()[0].rows.len()
        };
        let mut config = a.cloud.config.clone();
        config.network.northbound = Some(format!("ssl:127.0.0.1:{port}").parse().unwrap());
        let cloud = &a.cloud;
        let pass = async |config: &Config| {
            let network = Network::new(config, &cloud.store, &cloud.faults, &cloud.clock, &cloud.pokes.network);
            network.pass().await
        };
        let unreachable = || cloud.faults.all().iter().any(|fault| fault.what.contains("cannot be kept right"));
        config.network.northbound_name = Some("b1.node-controller.mallee.internal".into());
        pass(&config).await;
        assert!(unreachable() && routers().await == 0, "its certificate is for somebody else");
        config.network.northbound_name = Some(peer.server_name());
        pass(&config).await;
        assert!(!unreachable() && routers().await == 1, "the default VPC's");
        // A cloud that is not the database's: neither believes the other.
        let stranger = Rehearsal::new().await;
        join::own_identity(&stranger.cloud.config, &stranger.cloud.ca).unwrap();
        let theirs = Config { network: config.network.clone(), ..stranger.cloud.config.clone() };
        let error = Database::of(&theirs).unwrap().connect().await.err().unwrap();
        assert!(error.contains("certificate"), "{error}");
    }
}
