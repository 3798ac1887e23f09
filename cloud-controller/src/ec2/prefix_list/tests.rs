//! Prefix lists as clients use them.

use crate::ec2::rehearsal::{Rehearsal, all, first};

async fn list(a: &Rehearsal, more: &str) -> String {
    let request = format!("CreateManagedPrefixList&PrefixListName=offices&AddressFamily=IPv4&MaxEntries=3{more}");
    first(&a.ask(&request).await.unwrap(), "prefixListId")
}

#[tokio::test]
async fn versions_follow_each_other_and_an_old_one_comes_back_as_a_new_one() {
    let a = Rehearsal::new().await;
    let id = list(&a, "&Entry.1.Cidr=10.1.0.0/16&Entry.1.Description=here&Entry.2.Cidr=10.2.0.7/16").await;
    let entries = |version: &str| format!("GetManagedPrefixListEntries&PrefixListId={id}{version}");
    assert_eq!(a.all(&entries(""), "cidr").await, ["10.1.0.0/16", "10.2.0.0/16"]);
    let modify = |rest: &str| format!("ModifyManagedPrefixList&PrefixListId={id}{rest}");
    let change = modify("&CurrentVersion=1&AddEntry.1.Cidr=10.3.0.0/16&RemoveEntry.1.Cidr=10.1.0.0/16");
    assert_eq!(first(&a.ask(&change).await.unwrap(), "version"), "2");
    assert_eq!(a.ask(&change).await, Err("PrefixListVersionMismatch".into()), "somebody else was faster");
    assert_eq!(a.all(&entries(""), "cidr").await, ["10.2.0.0/16", "10.3.0.0/16"]);
    assert_eq!(a.all(&entries("&TargetVersion=1"), "cidr").await, ["10.1.0.0/16", "10.2.0.0/16"]);
    assert_eq!(a.ask(&entries("&TargetVersion=3")).await, Err("InvalidParameterValue".into()));
    let restore = format!("RestoreManagedPrefixListVersion&PrefixListId={id}&PreviousVersion=1&CurrentVersion=2");
    let restored = a.ask(&restore).await.unwrap();
    assert_eq!((first(&restored, "version"), first(&restored, "state")), ("3".into(), "restore-complete".into()));
    assert_eq!(a.all(&entries(""), "description").await, ["here"]);
    for (rest, code) in [
        ("&AddEntry.1.Cidr=10.9.0.0/16", "MissingParameter"),
        ("&CurrentVersion=3&RemoveEntry.1.Cidr=10.9.0.0/16", "InvalidParameterValue"),
        ("&CurrentVersion=3&AddEntry.1.Cidr=fd00::/8", "InvalidParameterValue"),
        ("&CurrentVersion=3&AddEntry.1.Cidr=1.0.0.0/8&AddEntry.2.Cidr=2.0.0.0/8", "PrefixListMaxEntriesExceeded"),
        ("&MaxEntries=1", "PrefixListMaxEntriesExceeded"),
        ("&PrefixListName=com.amazonaws.x", "InvalidParameterValue"),
    ] {
        assert_eq!(a.ask(&modify(rest)).await, Err(code.into()), "{rest}");
    }
}

#[tokio::test]
async fn a_list_that_is_referred_to_stays_and_counts_as_many_rules_as_it_may_have() {
    let a = Rehearsal::new().await;
    let id = list(&a, "&Entry.1.Cidr=10.1.0.0/16").await;
    let group = a.all("DescribeSecurityGroups", "groupId").await.remove(0);
    let rule = format!(
        "GroupId={group}&IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=22&IpPermissions.1.ToPort=22\
         &IpPermissions.1.PrefixListIds.1.PrefixListId={id}&IpPermissions.1.PrefixListIds.1.Description=offices"
    );
    let made = a.ask(&format!("AuthorizeSecurityGroupIngress&{rule}")).await.unwrap();
    assert_eq!(first(&made, "prefixListId"), id);
    let groups = format!("DescribeSecurityGroups&Filter.1.Name=ip-permission.prefix-list-id&Filter.1.Value.1={id}");
    assert_eq!(a.all(&groups, "description").await.len(), 1, "{}", a.ask(&groups).await.unwrap());
    let table = a.all("DescribeRouteTables", "routeTableId").await.remove(0);
    let gateway = a.all("DescribeInternetGateways", "internetGatewayId").await.remove(0);
    let route = format!("Route&RouteTableId={table}&DestinationPrefixListId={id}");
    a.ask(&format!("Create{route}&GatewayId={gateway}")).await.unwrap();
    assert_eq!(a.all("DescribeRouteTables", "destinationPrefixListId").await, [id.as_str()]);
    let mut users = a.all(&format!("GetManagedPrefixListAssociations&PrefixListId={id}"), "resourceId").await;
    users.sort();
    assert_eq!(users, [table.as_str(), group.as_str()]);
    let delete = format!("DeleteManagedPrefixList&PrefixListId={id}");
    assert_eq!(a.ask(&delete).await, Err("DependencyViolation".into()));
    let most = format!("ModifyManagedPrefixList&PrefixListId={id}&MaxEntries=61");
    assert_eq!(a.ask(&most).await, Err("RulesPerSecurityGroupLimitExceeded".into()));
    a.ask(&format!("Delete{route}")).await.unwrap();
    let revoked = a.ask(&format!("RevokeSecurityGroupIngress&{rule}")).await.unwrap();
    assert_eq!(first(&revoked, "prefixListId"), id);
    let deleted = a.ask(&delete).await.unwrap();
    assert_eq!(first(&deleted, "state"), "delete-complete");
    assert_eq!(a.ask(&delete).await, Err("InvalidPrefixListID.NotFound".into()));
}

#[tokio::test]
async fn another_accounts_list_is_not_there_and_the_clouds_own_is_everybodys() {
    let a = Rehearsal::with(|config| config.s3_url = "http://172.29.0.1:8777".into()).await;
    let stranger = a.another_account().await;
    let id = list(&a, "").await;
    for request in [
        format!("GetManagedPrefixListEntries&PrefixListId={id}"),
        format!("GetManagedPrefixListAssociations&PrefixListId={id}"),
        format!("ModifyManagedPrefixList&PrefixListId={id}&MaxEntries=4"),
        format!("RestoreManagedPrefixListVersion&PrefixListId={id}&PreviousVersion=1&CurrentVersion=1"),
        format!("DeleteManagedPrefixList&PrefixListId={id}"),
        format!("DescribeManagedPrefixLists&PrefixListId.1={id}"),
    ] {
        assert_eq!(a.ask_as(&stranger, &request).await, Err("InvalidPrefixListID.NotFound".into()), "{request}");
    }
    let own = "DescribeManagedPrefixLists&Filter.1.Name=owner-id&Filter.1.Value.1=AWS";
    let shown = a.ask_as(&stranger, own).await.unwrap();
    assert_eq!(all(&shown, "prefixListName"), ["com.amazonaws.mallee-1.s3"]);
    let s3 = first(&shown, "prefixListId");
    let entries = format!("GetManagedPrefixListEntries&PrefixListId={s3}");
    assert_eq!(all(&a.ask_as(&stranger, &entries).await.unwrap(), "cidr"), ["172.29.0.1/32"]);
    assert_eq!(a.all("DescribePrefixLists", "prefixListId").await, [s3.as_str()]);
    let delete = format!("DeleteManagedPrefixList&PrefixListId={s3}");
    assert_eq!(a.ask(&delete).await, Err("InvalidPrefixListID.NotFound".into()), "nobody's to change");
}
