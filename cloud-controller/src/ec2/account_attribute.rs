//! What an account may have, in EC2's own words.

use serde::{Deserialize, Serialize};

use crate::{Outcome, Refusal, actions, ec2::unless_dry_run, service::Call};

actions![DescribeAccountAttributes => describe];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeAccountAttributes {
    dry_run: Option<bool>,
    #[serde(default)]
    attribute_name: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedAttributes {
    account_attribute_set: Vec<AccountAttribute>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountAttribute {
    attribute_name: &'static str,
    attribute_value_set: Vec<AttributeValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AttributeValue {
    attribute_value: String,
}

const NAMES: [&str; 6] = [
    "default-vpc",
    "max-elastic-ips",
    "max-instances",
    "supported-platforms",
    "vpc-max-elastic-ips",
    "vpc-max-security-groups-per-interface",
];

async fn describe(call: &Call, input: DescribeAccountAttributes) -> Outcome<DescribedAttributes> {
    unless_dry_run(input.dry_run)?;
    if let Some(other) = input.attribute_name.iter().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(Refusal::new("InvalidParameterValue", format!("Invalid value '{other}' for attributeName.")));
    }
    let account = call.account().to_owned();
    let default_vpc =
        call.cloud.store.read("find the default VPC", move |tx| super::vpc::default_of(tx, &account)).await?;
    let value = |name: &str| match name {
        "default-vpc" => default_vpc.as_ref().map_or_else(|| "none".to_owned(), |vpc| vpc.id.to_string()),
        "max-instances" => call.cloud.config.max_instances.to_string(),
        "supported-platforms" => "VPC".to_owned(),
        "vpc-max-security-groups-per-interface" => "5".to_owned(),
        _ => call.cloud.config.max_addresses.to_string(),
    };
    let account_attribute_set = NAMES
        .into_iter()
        .filter(|name| input.attribute_name.is_empty() || input.attribute_name.iter().any(|asked| asked == name))
        .map(|name| AccountAttribute {
            attribute_name: name,
            attribute_value_set: vec![AttributeValue { attribute_value: value(name) }],
        })
        .collect();
    Ok(DescribedAttributes { account_attribute_set })
}
