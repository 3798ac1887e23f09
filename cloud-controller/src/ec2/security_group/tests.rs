//! Groups and rules as clients ask for them.

use crate::ec2::rehearsal::{Rehearsal, all, first};

async fn group(a: &Rehearsal, name: &str) -> String {
    let answer = a.ask(&format!("CreateSecurityGroup&GroupName={name}&GroupDescription=d")).await.unwrap();
    first(&answer, "groupId")
}

const SSH: &str = "IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=22&IpPermissions.1.ToPort=22\
                   &IpPermissions.1.IpRanges.1.CidrIp=10.0.0.0/8";

#[tokio::test]
async fn a_rule_is_the_same_however_it_is_said() {
    let a = Rehearsal::new().await;
    let id = group(&a, "web").await;
    let forms = [
        format!("GroupId={id}&{SSH}"),
        format!("GroupId={id}&IpProtocol=tcp&FromPort=22&ToPort=22&CidrIp=10.0.0.0/8"),
        "GroupName=web&IpProtocol=6&FromPort=22&ToPort=22&CidrIp=10.1.2.3/8".to_owned(),
        format!("GroupId={id}&{SSH}&IpPermissions.1.IpRanges.1.Description=another"),
    ];
    for authorize in &forms {
        let answer = a.ask(&format!("AuthorizeSecurityGroupIngress&{authorize}")).await.unwrap();
        assert_eq!(all(&answer, "cidrIpv4"), ["10.0.0.0/8"]);
        assert_eq!(all(&answer, "isEgress"), ["false"]);
        for revoke in &forms {
            let again = a.ask(&format!("AuthorizeSecurityGroupIngress&{revoke}")).await;
            assert_eq!(again, Err("InvalidPermission.Duplicate".into()), "{revoke}");
            let dry = a.ask(&format!("RevokeSecurityGroupIngress&{revoke}&DryRun=true")).await;
            assert_eq!(dry, Err("DryRunOperation".into()), "{revoke}");
        }
        let there = a.all(&format!("DescribeSecurityGroups&GroupId.1={id}"), "cidrIp").await;
        assert_eq!(there, ["10.0.0.0/8", "0.0.0.0/0"]);
        a.ask(&format!("RevokeSecurityGroupIngress&{authorize}")).await.unwrap();
        let again = a.ask(&format!("RevokeSecurityGroupIngress&{authorize}")).await;
        assert_eq!(again, Err("InvalidPermission.NotFound".into()));
    }
}

#[tokio::test]
async fn a_source_group_by_name_alone_is_all_of_tcp_udp_and_icmp() {
    let a = Rehearsal::new().await;
    let (web, db) = (group(&a, "web").await, group(&a, "db").await);
    let flat = format!("GroupName=db&SourceSecurityGroupName=web&SourceSecurityGroupOwnerId={}", a.account);
    let answer = a.ask(&format!("AuthorizeSecurityGroupIngress&{flat}")).await.unwrap();
    assert_eq!(all(&answer, "ipProtocol"), ["tcp", "udp", "icmp"]);
    let shown = a.ask(&format!("DescribeSecurityGroups&GroupId.1={db}")).await.unwrap();
    assert_eq!(all(&shown, "userId"), [a.account.as_str(); 3]);
    let by_filter = format!("DescribeSecurityGroups&Filter.1.Name=ip-permission.group-id&Filter.1.Value.1={web}");
    assert_eq!(a.all(&by_filter, "groupName").await, ["db"]);
    assert_eq!(a.ask(&format!("DeleteSecurityGroup&GroupId={web}")).await, Err("DependencyViolation".into()));
    assert_eq!(a.ask("DeleteSecurityGroup&GroupName=web").await, Err("InvalidGroup.InUse".into()));
    a.ask(&format!("RevokeSecurityGroupIngress&{flat}")).await.unwrap();
    a.ask("DeleteSecurityGroup&GroupName=web").await.unwrap();
    assert_eq!(a.ask(&format!("DeleteSecurityGroup&GroupId={web}")).await, Err("InvalidGroup.NotFound".into()));
}

#[tokio::test]
async fn what_is_wrong_with_a_rule_is_named_and_leaves_nothing() {
    let a = Rehearsal::new().await;
    let id = group(&a, "web").await;
    let stranger = a.another_account().await;
    let answer = a.ask_as(&stranger, "CreateSecurityGroup&GroupName=web&GroupDescription=d").await.unwrap();
    let others = first(&answer, "groupId");
    let port = |text: &str| format!("IpProtocol=tcp&FromPort=80&ToPort={text}");
    let table = [
        (String::new(), "MissingParameter"),
        ("CidrIp=0.0.0.0/0".into(), "MissingParameter"),
        (port("80"), "InvalidPermission.Malformed"),
        (format!("{}&CidrIp=0.0.0.0", port("80")), "InvalidParameterValue"),
        (format!("{}&CidrIp=0.0.0.0/0", port("79")), "InvalidParameterValue"),
        (format!("{}&CidrIp=0.0.0.0/0", port("65536")), "InvalidParameterValue"),
        (format!("{}&CidrIp=0.0.0.0/0", port("x")), "InvalidParameterValue"),
        ("IpProtocol=tcp&CidrIp=0.0.0.0/0".into(), "InvalidParameterValue"),
        ("IpProtocol=tcpp&CidrIp=0.0.0.0/0".into(), "InvalidParameterValue"),
        (format!("{}&{SSH}", port("80")), "InvalidParameterCombination"),
        (format!("{SSH}&IpPermissions.1.IpRanges.2.CidrIp=10.9.0.0/8"), "InvalidParameterValue"),
        (
            format!("{SSH}&IpPermissions.1.PrefixListIds.1.PrefixListId=pl-0123456789abcdef0"),
            "InvalidPrefixListID.NotFound",
        ),
        (format!("{SSH}&IpPermissions.1.Groups.1.GroupId={others}"), "InvalidGroup.NotFound"),
        (format!("{SSH}&IpPermissions.1.Groups.1.GroupId=sg-1"), "InvalidGroupId.Malformed"),
        (format!("{SSH}&IpPermissions.1.Groups.1.GroupName=nobody"), "InvalidGroup.NotFound"),
        (format!("{SSH}&Colour=red"), "UnknownParameter"),
        (format!("{SSH}&TagSpecification.1.ResourceType=instance"), "InvalidParameterValue"),
    ];
    for (rule, code) in table {
        for action in ["AuthorizeSecurityGroupIngress", "AuthorizeSecurityGroupEgress"] {
            assert_eq!(a.ask(&format!("{action}&GroupId={id}&{rule}")).await, Err(code.into()), "{rule}");
        }
    }
    for of in [&others, "sg-00000000000000000"] {
        let refused = a.ask(&format!("AuthorizeSecurityGroupIngress&GroupId={of}&{SSH}")).await;
        assert_eq!(refused, Err("InvalidGroup.NotFound".into()));
    }
    let rules = format!("DescribeSecurityGroupRules&Filter.1.Name=group-id&Filter.1.Value.1={id}");
    assert_eq!(a.all(&rules, "isEgress").await, ["true"], "only what it was born with");
}

#[tokio::test]
async fn rules_have_ids_tags_and_descriptions_and_can_be_changed_in_place() {
    let a = Rehearsal::new().await;
    let id = group(&a, "web").await;
    let tags = "TagSpecification.1.ResourceType=security-group-rule&TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=v";
    let answer = a.ask(&format!("AuthorizeSecurityGroupIngress&GroupId={id}&{SSH}&{tags}")).await.unwrap();
    let rule = first(&answer, "securityGroupRuleId");
    let shown = format!("DescribeSecurityGroupRules&SecurityGroupRuleId.1={rule}");
    assert_eq!(a.all(&shown, "key").await, ["k"]);
    let describe = format!(
        "UpdateSecurityGroupRuleDescriptionsIngress&GroupId={id}&{SSH}&IpPermissions.1.IpRanges.1.Description=home"
    );
    a.ask(&describe).await.unwrap();
    assert_eq!(a.all(&shown, "description").await, ["home"]);
    let to = "SecurityGroupRule.1.SecurityGroupRule";
    let modify = format!(
        "ModifySecurityGroupRules&GroupId={id}&SecurityGroupRule.1.SecurityGroupRuleId={rule}&{to}.IpProtocol=udp\
         &{to}.FromPort=53&{to}.ToPort=53&{to}.CidrIpv4=0.0.0.0/0"
    );
    a.ask(&modify).await.unwrap();
    let now = a.ask(&shown).await.unwrap();
    assert_eq!(
        (first(&now, "ipProtocol"), first(&now, "fromPort"), first(&now, "cidrIpv4")),
        ("udp".into(), "53".into(), "0.0.0.0/0".into())
    );
    assert_eq!(
        a.ask(&format!("RevokeSecurityGroupIngress&GroupId={id}&{SSH}")).await,
        Err("InvalidPermission.NotFound".into())
    );
    let revoke = format!("RevokeSecurityGroupIngress&GroupId={id}&SecurityGroupRuleId.1={rule}");
    assert_eq!(first(&a.ask(&revoke).await.unwrap(), "securityGroupRuleId"), rule);
    assert_eq!(a.ask(&revoke).await, Err("InvalidSecurityGroupRuleId.NotFound".into()));
    assert_eq!(a.ask(&shown).await, Err("InvalidSecurityGroupRuleId.NotFound".into()));
}

#[tokio::test]
async fn groups_are_kept_from_each_other_and_from_misuse() {
    let a = Rehearsal::new().await;
    let create = |name: &str| format!("CreateSecurityGroup&GroupName={name}&GroupDescription=d");
    let web = group(&a, "web").await;
    assert_eq!(a.ask(&create("web")).await, Err("InvalidGroup.Duplicate".into()));
    assert_eq!(a.ask(&create("default")).await, Err("InvalidGroup.Reserved".into()));
    assert_eq!(a.ask(&create("sg-web")).await, Err("InvalidParameterValue".into()));
    assert_eq!(a.ask(&create("%C3%A9")).await, Err("InvalidParameterValue".into()));
    assert_eq!(
        a.ask(&format!("{}&VpcId=vpc-00000000000000000", create("x"))).await,
        Err("InvalidVpcID.NotFound".into())
    );
    let default = first(&a.ask("DescribeSecurityGroups&GroupName.1=default").await.unwrap(), "groupId");
    assert_eq!(a.ask(&format!("DeleteSecurityGroup&GroupId={default}")).await, Err("CannotDelete".into()));
    let instance = a.launch(&format!("SecurityGroupId.1={web}")).await;
    assert_eq!(a.ask(&format!("DeleteSecurityGroup&GroupId={web}")).await, Err("DependencyViolation".into()));
    let before = a.row(&instance).await.generation;
    a.ask(&format!("ModifyInstanceAttribute&InstanceId={instance}&GroupId.1={default}")).await.unwrap();
    assert!(a.row(&instance).await.generation > before, "its metadata shows the names of groups");
    a.ask(&format!("DeleteSecurityGroup&GroupId={web}")).await.unwrap();

    let stranger = a.another_account().await;
    for request in ["DescribeSecurityGroups&GroupId.1=", "DeleteSecurityGroup&GroupId="] {
        assert_eq!(a.ask_as(&stranger, &format!("{request}{default}")).await, Err("InvalidGroup.NotFound".into()));
    }
}

#[tokio::test]
async fn a_group_holds_sixty_rules_and_pages_go_on_where_the_last_ended() {
    let a = Rehearsal::new().await;
    let id = group(&a, "web").await;
    for n in 0..60 {
        let rule = format!("IpProtocol=tcp&FromPort={n}&ToPort={n}&CidrIp=0.0.0.0/0");
        a.ask(&format!("AuthorizeSecurityGroupIngress&GroupId={id}&{rule}")).await.unwrap();
    }
    let one_more = a
        .ask(&format!("AuthorizeSecurityGroupIngress&GroupId={id}&{SSH}&IpPermissions.1.IpRanges.2.CidrIp=1.0.0.0/8"))
        .await;
    assert_eq!(one_more, Err("RulesPerSecurityGroupLimitExceeded".into()));
    let ask = format!("DescribeSecurityGroupRules&Filter.1.Name=group-id&Filter.1.Value.1={id}&MaxResults=25");
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = a.ask(&format!("{ask}{token}")).await.unwrap();
        seen.extend(all(&page, "securityGroupRuleId"));
        match all(&page, "nextToken").pop() {
            Some(next) => token = format!("&NextToken={next}"),
            None => break,
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 61);
}
