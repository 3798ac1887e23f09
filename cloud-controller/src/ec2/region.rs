//! The region and its availability zones, as the configuration names them.

use mallee_aws::filter::{Attribute, Filter, Filters, Tagged};
use serde::{Deserialize, Serialize};

use crate::{Outcome, Refusal, actions, ec2::unless_dry_run, service::Call};

actions![DescribeAvailabilityZones => describe_zones, DescribeRegions => describe];

/// `mallee1-az1`: the name of a zone that is the same for all accounts.
pub fn zone_id(region: &str, number: usize) -> String {
    format!("{}-az{number}", region.replace('-', ""))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeRegions {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    region_name: Vec<String>,
    /// All of them or only the enabled ones: there is one, and it is.
    #[serde(rename = "AllRegions")]
    _all_regions: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedRegions {
    region_info: Vec<Region>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    region_name: String,
    region_endpoint: String,
    opt_in_status: &'static str,
}

impl Tagged for Region {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

const REGION_ATTRIBUTES: &[Attribute<Region>] = &[
    ("endpoint", |r| vec![(&r.region_endpoint).into()]),
    ("opt-in-status", |r| vec![r.opt_in_status.into()]),
    ("region-name", |r| vec![(&r.region_name).into()]),
];

async fn describe(call: &Call, input: DescribeRegions) -> Outcome<DescribedRegions> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, REGION_ATTRIBUTES)?;
    let config = &call.cloud.config;
    if let Some(other) = input.region_name.iter().find(|name| **name != config.region) {
        return Err(Refusal::new("InvalidParameterValue", format!("Invalid region provided: [{other}]")));
    }
    let port = config.daemon.listen.first().map_or(8773, std::net::SocketAddr::port);
    let host = config.public_names.first().map_or("127.0.0.1", String::as_str);
    let region = Region {
        region_name: config.region.clone(),
        region_endpoint: format!("{host}:{port}"),
        opt_in_status: "opt-in-not-required",
    };
    Ok(DescribedRegions { region_info: Some(region).into_iter().filter(|r| filters.matches(r)).collect() })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeAvailabilityZones {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    zone_name: Vec<String>,
    #[serde(default)]
    zone_id: Vec<String>,
    #[serde(rename = "AllAvailabilityZones")]
    _all_availability_zones: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedZones {
    availability_zone_info: Vec<Zone>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Zone {
    zone_name: String,
    zone_state: &'static str,
    region_name: String,
    message_set: Vec<String>,
    zone_id: String,
    group_name: String,
    network_border_group: String,
    opt_in_status: &'static str,
    zone_type: &'static str,
}

impl Tagged for Zone {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

const ZONE_ATTRIBUTES: &[Attribute<Zone>] = &[
    ("group-long-name", |_| vec![]),
    ("group-name", |z| vec![(&z.group_name).into()]),
    ("message", |_| vec![]),
    ("opt-in-status", |z| vec![z.opt_in_status.into()]),
    ("parent-zone-id", |_| vec![]),
    ("parent-zone-name", |_| vec![]),
    ("region-name", |z| vec![(&z.region_name).into()]),
    ("state", |z| vec![z.zone_state.into()]),
    ("zone-id", |z| vec![(&z.zone_id).into()]),
    ("zone-name", |z| vec![(&z.zone_name).into()]),
    ("zone-type", |z| vec![z.zone_type.into()]),
];

async fn describe_zones(call: &Call, input: DescribeAvailabilityZones) -> Outcome<DescribedZones> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, ZONE_ATTRIBUTES)?;
    let config = &call.cloud.config;
    let all: Vec<Zone> = config
        .zones
        .iter()
        .enumerate()
        .map(|(n, name)| Zone {
            zone_name: name.clone(),
            zone_state: "available",
            region_name: config.region.clone(),
            message_set: Vec::new(),
            zone_id: zone_id(&config.region, n + 1),
            group_name: config.region.clone(),
            network_border_group: config.region.clone(),
            opt_in_status: "opt-in-not-required",
            zone_type: "availability-zone",
        })
        .collect();
    for (asked, known) in [
        (&input.zone_name, all.iter().map(|z| &z.zone_name).collect::<Vec<_>>()),
        (&input.zone_id, all.iter().map(|z| &z.zone_id).collect::<Vec<_>>()),
    ] {
        if let Some(other) = asked.iter().find(|name| !known.contains(name)) {
            return Err(Refusal::new("InvalidParameterValue", format!("Invalid availability zone: [{other}]")));
        }
    }
    let asked_for = |z: &Zone| {
        (input.zone_name.is_empty() && input.zone_id.is_empty())
            || input.zone_name.contains(&z.zone_name)
            || input.zone_id.contains(&z.zone_id)
    };
    Ok(DescribedZones {
        availability_zone_info: all.into_iter().filter(|z| asked_for(z) && filters.matches(z)).collect(),
    })
}
