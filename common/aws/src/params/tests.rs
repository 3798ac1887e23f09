use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct Run {
    image_id: String,
    max_count: u32,
    #[serde(default)]
    security_group_id: Vec<String>,
    #[serde(default)]
    block_device_mapping: Vec<Mapping>,
    dry_run: Option<bool>,
    placement: Option<Placement>,
    tenancy: Option<Tenancy>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct Mapping {
    device_name: String,
    ebs: Option<Ebs>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct Ebs {
    volume_size: i32,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct Placement {
    availability_zone: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Tenancy {
    Default,
    Dedicated,
}

fn run(query: &str) -> Result<Run, AwsError> {
    from_params(&Params::parse(query.as_bytes())?, Flavor::Ec2)
}

fn refusal(query: &str) -> (String, String) {
    let error = run(query).unwrap_err();
    (error.code.into_owned(), error.message)
}

#[test]
fn nested_lists_are_read_in_number_order_with_holes() {
    let input = run("Action=RunInstances&Version=2016-11-15&X-Amz-Date=x&ImageId=ami-1&MaxCount=2\
        &SecurityGroupId.10=sg-c&SecurityGroupId.2=sg-b&SecurityGroupId.1=sg-a\
        &BlockDeviceMapping.3.DeviceName=%2Fdev%2Fsda1&BlockDeviceMapping.3.Ebs.VolumeSize=8&DryRun=True\
        &Placement.AvailabilityZone=mallee+1a&Tenancy=dedicated")
    .unwrap();
    assert_eq!(input.security_group_id, ["sg-a", "sg-b", "sg-c"]);
    assert_eq!(input.block_device_mapping[0].device_name, "/dev/sda1");
    assert_eq!(input.block_device_mapping[0].ebs, Some(Ebs { volume_size: 8 }));
    assert_eq!(input.dry_run, Some(true));
    assert_eq!(input.placement.unwrap().availability_zone.as_deref(), Some("mallee 1a"));
    assert_eq!(input.tenancy, Some(Tenancy::Dedicated));
}

#[test]
fn refusals_name_the_full_parameter() {
    let table = [
        ("MaxCount=1", "MissingParameter", "The request must contain the parameter ImageId"),
        ("ImageId=a&MaxCount=1&Colour=red", "UnknownParameter", "The parameter Colour is not recognized"),
        (
            "ImageId=a&MaxCount=1&BlockDeviceMapping.1.DeviceName=a&BlockDeviceMapping.1.Ebs.VolumeSize=1\
             &BlockDeviceMapping.1.Ebs.Sise=8",
            "UnknownParameter",
            "The parameter BlockDeviceMapping.1.Ebs.Sise is not recognized",
        ),
        (
            "ImageId=a&MaxCount=1&BlockDeviceMapping.2.Ebs.VolumeSize=8",
            "MissingParameter",
            "The request must contain the parameter BlockDeviceMapping.2.DeviceName",
        ),
        (
            "ImageId=a&MaxCount=ten",
            "InvalidParameterValue",
            "Value (ten) for parameter MaxCount is invalid. Expected a number in range.",
        ),
        (
            "ImageId=a&MaxCount=1&Tenancy=host",
            "InvalidParameterValue",
            "Value (host) for parameter Tenancy is invalid. Expected one of: default, dedicated",
        ),
        (
            "ImageId=a&MaxCount=1&SecurityGroupId.x=1",
            "UnknownParameter",
            "The parameter SecurityGroupId.x is not recognized",
        ),
        (
            "ImageId=a&MaxCount=1&SecurityGroupId.01=1",
            "UnknownParameter",
            "The parameter SecurityGroupId.01 is not recognized",
        ),
        (
            "ImageId=a&MaxCount=1&SecurityGroupId=sg-1",
            "UnknownParameter",
            "The parameter SecurityGroupId is not recognized",
        ),
        ("ImageId=a&MaxCount=1&ImageId.1=b", "UnknownParameter", "The parameter ImageId.1 is not recognized"),
        (
            "ImageId=a&MaxCount=1&Placement.Zone.1=b",
            "UnknownParameter",
            "The parameter Placement.Zone.1 is not recognized",
        ),
        ("ImageId=a&MaxCount=1&ImageId=b", "MalformedQueryString", "The parameter ImageId is given more than once"),
    ];
    for (query, code, message) in table {
        assert_eq!(refusal(query), (code.to_string(), message.to_string()), "{query}");
    }
}

#[test]
fn query_lists_maps_and_empty_lists_are_read() {
    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "PascalCase")]
    struct Input {
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        flat: Vec<String>,
        empty: Vec<String>,
        #[serde(default)]
        attributes: BTreeMap<String, u32>,
    }
    let params = Params::parse(
        b"Names.member.1=a&Names.member.2=b&Flat.1=c&Empty=&Attributes.entry.1.key=k&Attributes.entry.1.value=7",
    )
    .unwrap();
    let input: Input = from_params(&params, Flavor::Query).unwrap();
    assert_eq!(input.names, ["a", "b"]);
    assert_eq!(input.flat, ["c"]);
    assert!(input.empty.is_empty());
    assert_eq!(input.attributes, BTreeMap::from([("k".to_string(), 7)]));
    let params = Params::parse(b"Empty=&Names.member.1=a&Names.members.2=b").unwrap();
    let error = from_params::<Input>(&params, Flavor::Query).unwrap_err();
    assert_eq!(error.message, "The parameter Names.members.2 is not recognized");
}

#[test]
fn a_field_keeps_the_code_of_its_own_type() {
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Input {
        #[allow(dead_code)]
        instance_id: Vec<crate::id::InstanceId>,
    }
    let params = Params::parse(b"InstanceId.1=i-zz").unwrap();
    let error = from_params::<Input>(&params, Flavor::Ec2).unwrap_err();
    assert_eq!((error.code.as_ref(), error.message.as_str()), ("InvalidInstanceID.Malformed", "Invalid id: \"i-zz\""));
}

#[test]
fn hostile_input_is_refused_and_never_panics() {
    let deep = format!("{}=1", vec!["A"; 200].join("."));
    assert_eq!(refusal(&format!("ImageId=a&MaxCount=1&{deep}")).0, "UnknownParameter");
    let many = (0..20_000).map(|n| format!("X.{n}=1")).collect::<Vec<_>>().join("&");
    assert_eq!(Params::parse(many.as_bytes()).unwrap_err().code, "MalformedQueryString");
    for bytes in [&b"a=%"[..], b"a=%f", b"a=%zz", b"%ff=1", b"a=\xff"] {
        assert_eq!(Params::parse(bytes).unwrap_err().code, "MalformedQueryString");
    }
    for query in ["=", "..=1", ".1=", "ImageId.=", "&&&", "Placement.=x", "BlockDeviceMapping..=1"] {
        assert!(run(query).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn no_form_panics(form in "(ImageId|MaxCount|SecurityGroupId|BlockDeviceMapping|Ebs|member|[.&=0-9%+a-zé]){0,40}") {
        let _ = run(&form);
        if let Ok(params) = Params::parse(form.as_bytes()) {
            let _ = from_params::<Run>(&params, Flavor::Query);
        }
    }
}

#[test]
fn a_list_of_one_is_a_plain_value_as_boto_2_spells_it_and_a_longer_one_is_not() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Console {
        instance_id: String,
    }
    let read = |form: &str, flavor| from_params::<Console>(&Params::parse(form.as_bytes()).unwrap(), flavor);
    assert_eq!(read("InstanceId.1=i-1", Flavor::Ec2).unwrap().instance_id, "i-1");
    for form in [
        "InstanceId.1=i-1&InstanceId.2=i-2",
        "InstanceId=i-1&InstanceId.1=i-2",
        "InstanceId.1.Name=i-1",
        "InstanceId.2=i-1",
    ] {
        assert_eq!(read(form, Flavor::Ec2).unwrap_err().code, "UnknownParameter", "{form}");
    }
    assert_eq!(read("InstanceId.1=i-1", Flavor::Query).unwrap_err().code, "UnknownParameter");
}

#[test]
fn a_character_that_cannot_be_kept_is_refused_before_it_gets_anywhere() {
    for encoded in [&b"KeyName=%00"[..], b"Key%00Name=a", b"KeyName=a\0b"] {
        assert_eq!(Params::parse(encoded).unwrap_err().code, "InvalidCharacter");
    }
}
