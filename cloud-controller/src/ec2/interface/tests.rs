//! Interfaces that come before their instance and stay after it, and their addresses.

use mallee_tiers::{InterfaceReport, Observed};

use crate::{
    Outcome,
    ec2::rehearsal::{Rehearsal, all, first},
};

async fn subnet(a: &Rehearsal) -> String {
    a.all("DescribeSubnets&Filter.1.Name=availability-zone&Filter.1.Value.1=z-1a", "subnetId").await.remove(0)
}

async fn stop(a: &Rehearsal, instance: &str) {
    a.seen(instance, Observed::Running, |_| {}).await;
    a.ask(&format!("StopInstances&InstanceId.1={instance}")).await.unwrap();
    a.seen(instance, Observed::Stopped, |_| {}).await;
}

#[tokio::test]
async fn an_interface_is_made_worn_taken_off_and_ended() {
    let a = Rehearsal::new().await;
    let subnet = subnet(&a).await;
    let made =
        a.ask(&format!("CreateNetworkInterface&SubnetId={subnet}&ClientToken=x&Description=mine")).await.unwrap();
    let id = first(&made, "networkInterfaceId");
    assert_eq!(first(&made, "status"), "available");
    let again =
        a.ask(&format!("CreateNetworkInterface&SubnetId={subnet}&ClientToken=x&Description=mine")).await.unwrap();
    assert_eq!(first(&again, "networkInterfaceId"), id);

    let instance = a.launch("Placement.AvailabilityZone=z-1a").await;
    let attach = |index: u32| {
        format!("AttachNetworkInterface&NetworkInterfaceId={id}&InstanceId={instance}&DeviceIndex={index}")
    };
    stop(&a, &instance).await;
    assert_eq!(a.ask(&attach(0)).await, Err("InvalidParameterValue".into()), "the place is taken");
    let before = a.row(&instance).await.generation;
    let attachment = first(&a.ask(&attach(1)).await.unwrap(), "attachmentId");
    assert!(a.row(&instance).await.generation > before);
    let body = a.body(&instance).await;
    assert_eq!(body.interfaces.iter().map(|i| i.device_index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(a.ask(&attach(2)).await, Err("InvalidNetworkInterface.InUse".into()));
    let delete = format!("DeleteNetworkInterface&NetworkInterfaceId={id}");
    assert_eq!(a.ask(&delete).await, Err("InvalidNetworkInterface.InUse".into()));
    let elsewhere = a.launch("Placement.AvailabilityZone=z-1b").await;
    stop(&a, &elsewhere).await;

    a.ask(&format!("DetachNetworkInterface&AttachmentId={attachment}")).await.unwrap();
    assert_eq!(a.body(&instance).await.interfaces.len(), 1);
    let other = format!("AttachNetworkInterface&NetworkInterfaceId={id}&InstanceId={elsewhere}&DeviceIndex=1");
    assert_eq!(a.ask(&other).await, Err("InvalidParameterCombination".into()), "another zone");
    a.ask(&delete).await.unwrap();
    assert_eq!(a.ask(&delete).await, Err("InvalidNetworkInterfaceID.NotFound".into()));
}

#[tokio::test]
async fn a_launch_may_have_several_interfaces_and_those_that_were_there_outlive_it() {
    let a = Rehearsal::new().await;
    let subnet = subnet(&a).await;
    let made = a.ask(&format!("CreateNetworkInterface&SubnetId={subnet}")).await.unwrap();
    let mine = first(&made, "networkInterfaceId");
    let instance = a
        .launch(&format!(
            "NetworkInterface.1.DeviceIndex=0&NetworkInterface.1.SubnetId={subnet}\
             &NetworkInterface.1.SecondaryPrivateIpAddressCount=2\
             &NetworkInterface.2.DeviceIndex=1&NetworkInterface.2.NetworkInterfaceId={mine}"
        ))
        .await;
    let shown = a.ask(&format!("DescribeInstances&InstanceId.1={instance}")).await.unwrap();
    assert_eq!(all(&shown, "deviceIndex"), ["0", "1"]);
    a.seen(&instance, Observed::Running, |_| {}).await;
    a.ask(&format!("TerminateInstances&InstanceId.1={instance}")).await.unwrap();
    a.seen(&instance, Observed::Gone, |_| {}).await;
    let left = a.ask("DescribeNetworkInterfaces").await.unwrap();
    assert_eq!(all(&left, "networkInterfaceId"), [mine]);
    assert_eq!(all(&left, "status"), ["available"]);
}

#[tokio::test]
async fn each_private_address_may_have_an_elastic_ip() {
    let a = Rehearsal::new().await;
    let instance = a.launch("").await;
    let of = format!("DescribeNetworkInterfaces&Filter.1.Name=attachment.instance-id&Filter.1.Value.1={instance}");
    let id = a.all(&of, "networkInterfaceId").await.remove(0);
    let assigned =
        a.ask(&format!("AssignPrivateIpAddresses&NetworkInterfaceId={id}&SecondaryPrivateIpAddressCount=1")).await;
    let second = first(&assigned.unwrap(), "privateIpAddress");
    let mut publics = Vec::new();
    for address in [None, Some(&second)] {
        let allocated = a.ask("AllocateAddress&Domain=vpc").await.unwrap();
        let at = address.map(|ip| format!("&PrivateIpAddress={ip}")).unwrap_or_default();
        let associate =
            format!("AssociateAddress&AllocationId={}&NetworkInterfaceId={id}{at}", first(&allocated, "allocationId"));
        a.ask(&associate).await.unwrap();
        publics.push(first(&allocated, "publicIp"));
    }
    let shown = a.ask(&of).await.unwrap();
    let addresses = &shown[shown.find("<privateIpAddressesSet>").unwrap()..];
    assert_eq!(all(addresses, "publicIp"), publics);
    let tree = a.body(&instance).await.metadata.tree;
    assert!(
        tree.iter().any(|(k, v)| k.ends_with("local-ipv4s") && v.lines().nth(1) == Some(second.as_str())),
        "{tree:?}"
    );
    let unassign = |ip: &str| format!("UnassignPrivateIpAddresses&NetworkInterfaceId={id}&PrivateIpAddress.1={ip}");
    a.ask(&unassign(&second)).await.unwrap();
    assert_eq!(a.ask(&unassign(&second)).await, Err("InvalidParameterValue".into()));
    let left = a.ask("DescribeAddresses").await.unwrap();
    assert_eq!(all(&left, "associationId").len(), 1, "the address that went took its elastic IP off");
}

/// The node of a running instance says which interfaces its guest has.
async fn node_has(a: &Rehearsal, instance: &str, taken: &[(&str, bool)]) {
    let mut interfaces = Vec::new();
    for (id, attached) in taken {
        let (account, id) = (a.account.clone(), id.parse().unwrap());
        let row: Outcome<_> = a.cloud.store.read("read", move |tx| super::get(tx, &account, &id)).await;
        interfaces.push(InterfaceReport { port: row.unwrap().port, attached: *attached, reason: String::new() });
    }
    a.seen(instance, Observed::Running, |report| report.interfaces = Some(interfaces.clone())).await;
}

#[tokio::test]
async fn a_running_instance_has_an_interface_when_its_guest_has_it_and_until_it_lets_go() {
    let a = Rehearsal::new().await;
    let subnet = subnet(&a).await;
    let made = a.ask(&format!("CreateNetworkInterface&SubnetId={subnet}")).await.unwrap();
    let id = first(&made, "networkInterfaceId");
    let instance = a.launch("Placement.AvailabilityZone=z-1a").await;
    let of = |id: &str| format!("DescribeNetworkInterfaces&NetworkInterfaceId.1={id}");
    let status = async |id: &str| all(&a.ask(&of(id)).await.unwrap(), "status").join(" ");
    let own = format!("DescribeNetworkInterfaces&Filter.1.Name=attachment.instance-id&Filter.1.Value.1={instance}");
    let own = a.all(&own, "networkInterfaceId").await.remove(0);
    assert_eq!(status(&own).await, "in-use attaching");
    node_has(&a, &instance, &[(&own, true)]).await;
    assert_eq!(status(&own).await, "in-use attached");

    let attach = format!("AttachNetworkInterface&NetworkInterfaceId={id}&InstanceId={instance}&DeviceIndex=1");
    let attachment = first(&a.ask(&attach).await.unwrap(), "attachmentId");
    assert_eq!(a.body(&instance).await.interfaces.len(), 2);
    node_has(&a, &instance, &[(&own, true), (&id, false)]).await;
    assert_eq!(status(&id).await, "in-use attaching");
    node_has(&a, &instance, &[(&own, true), (&id, true)]).await;
    assert_eq!(status(&id).await, "in-use attached");

    let detach = format!("DetachNetworkInterface&AttachmentId={attachment}");
    assert_eq!(a.ask(&format!("{detach}&Force=true")).await, Err("Unsupported".into()));
    a.ask(&detach).await.unwrap();
    assert_eq!(a.body(&instance).await.interfaces.len(), 1);
    assert_eq!(a.ask(&detach).await, Err("IncorrectState".into()));
    let delete = format!("DeleteNetworkInterface&NetworkInterfaceId={id}");
    node_has(&a, &instance, &[(&own, true), (&id, false)]).await;
    assert_eq!(status(&id).await, "in-use detaching", "its guest still has it");
    assert_eq!(a.ask(&delete).await, Err("InvalidNetworkInterface.InUse".into()));
    node_has(&a, &instance, &[(&own, true)]).await;
    assert_eq!(status(&id).await, "available");
    a.ask(&delete).await.unwrap();
}

#[tokio::test]
async fn an_interface_on_its_way_off_outlives_its_instance() {
    let a = Rehearsal::new().await;
    let subnet = subnet(&a).await;
    let made = a.ask(&format!("CreateNetworkInterface&SubnetId={subnet}")).await.unwrap();
    let id = first(&made, "networkInterfaceId");
    let instance = a
        .launch(&format!(
            "NetworkInterface.1.DeviceIndex=0&NetworkInterface.1.SubnetId={subnet}&NetworkInterface.2.DeviceIndex=1\
             &NetworkInterface.2.NetworkInterfaceId={id}"
        ))
        .await;
    a.seen(&instance, Observed::Running, |_| {}).await;
    let shown = a.ask(&format!("DescribeNetworkInterfaces&NetworkInterfaceId.1={id}")).await.unwrap();
    let attachment = first(&shown, "attachmentId");
    a.ask(&format!("DetachNetworkInterface&AttachmentId={attachment}")).await.unwrap();
    a.ask(&format!("TerminateInstances&InstanceId.1={instance}")).await.unwrap();
    a.seen(&instance, Observed::Gone, |_| {}).await;
    let left = a.ask("DescribeNetworkInterfaces").await.unwrap();
    assert_eq!((all(&left, "networkInterfaceId"), all(&left, "status")), (vec![id], vec!["available".into()]));
}
