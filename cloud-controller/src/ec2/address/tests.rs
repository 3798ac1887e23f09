//! Elastic IPs and what they point at.

use mallee_tiers::Observed;

use crate::ec2::rehearsal::{Rehearsal, first};

async fn allocate(a: &Rehearsal) -> (String, String) {
    let answer = a.ask("AllocateAddress&Domain=vpc").await.unwrap();
    (first(&answer, "allocationId"), first(&answer, "publicIp"))
}

async fn public_ip(a: &Rehearsal, instance: &str) -> Option<String> {
    a.all(
        &format!("DescribeNetworkInterfaces&Filter.1.Name=attachment.instance-id&Filter.1.Value.1={instance}"),
        "publicIp",
    )
    .await
    .pop()
}

#[tokio::test]
async fn an_address_is_taken_pointed_moved_and_given_back() {
    let a = Rehearsal::new().await;
    let (one, two) = (a.launch("").await, a.launch("").await);
    for i in [&one, &two] {
        a.seen(i, Observed::Running, |_| {}).await;
    }
    let (id, ip) = allocate(&a).await;
    let automatic = public_ip(&a, &one).await;
    assert!(automatic.is_some_and(|i| i != ip));
    let before = a.row(&one).await.generation;

    let associate = |instance: &str| format!("AssociateAddress&AllocationId={id}&InstanceId={instance}");
    let first_time = first(&a.ask(&associate(&one)).await.unwrap(), "associationId");
    assert_eq!(public_ip(&a, &one).await, Some(ip.clone()));
    assert!(a.row(&one).await.generation > before, "its metadata shows the address");
    assert_eq!(
        first(&a.ask(&associate(&one)).await.unwrap(), "associationId"),
        first_time,
        "asking again changes nothing"
    );
    assert_eq!(a.ask(&associate(&two)).await, Err("Resource.AlreadyAssociated".into()));
    assert_eq!(a.ask(&format!("ReleaseAddress&AllocationId={id}")).await, Err("InvalidIPAddress.InUse".into()));

    a.ask(&format!("{}&AllowReassociation=true", associate(&two))).await.unwrap();
    let shown = a.ask(&format!("DescribeAddresses&Filter.1.Name=instance-id&Filter.1.Value.1={two}")).await.unwrap();
    assert_eq!(first(&shown, "allocationId"), id);
    assert_eq!(public_ip(&a, &one).await, None);
    // As in EC2 classic.
    a.ask(&format!("AssociateAddress&PublicIp={ip}&InstanceId={one}")).await.unwrap();
    a.ask(&format!("DisassociateAddress&PublicIp={ip}")).await.unwrap();
    assert_eq!(
        a.ask(&format!("DisassociateAddress&AssociationId={first_time}")).await,
        Err("InvalidAssociationID.NotFound".into())
    );
    a.ask(&format!("ReleaseAddress&PublicIp={ip}")).await.unwrap();
    assert_eq!(a.ask(&format!("ReleaseAddress&AllocationId={id}")).await, Err("InvalidAllocationID.NotFound".into()));
    assert_eq!(a.ask(&format!("DescribeAddresses&PublicIp.1={ip}")).await, Err("InvalidAddress.NotFound".into()));
}

#[tokio::test]
async fn somebody_elses_address_is_none_at_all() {
    let a = Rehearsal::new().await;
    let (id, ip) = allocate(&a).await;
    let instance = a.launch("").await;
    let stranger = a.another_account().await;
    let table = [
        (format!("DescribeAddresses&AllocationId.1={id}"), "InvalidAllocationID.NotFound"),
        (format!("DescribeAddressesAttribute&AllocationId.1={id}"), "InvalidAllocationID.NotFound"),
        (format!("ReleaseAddress&AllocationId={id}"), "InvalidAllocationID.NotFound"),
        (format!("ReleaseAddress&PublicIp={ip}"), "InvalidAddress.NotFound"),
        (format!("AssociateAddress&AllocationId={id}&InstanceId={instance}"), "InvalidAllocationID.NotFound"),
        ("DescribeAddresses&AllocationId.1=eipalloc-1".into(), "InvalidAllocationID.Malformed"),
    ];
    for (request, code) in table {
        assert_eq!(a.ask_as(&stranger, &request).await, Err(code.into()), "{request}");
    }
    let own = first(&a.ask_as(&stranger, "AllocateAddress").await.unwrap(), "allocationId");
    let theirs = a.ask_as(&stranger, &format!("AssociateAddress&AllocationId={own}&InstanceId={instance}")).await;
    assert_eq!(theirs, Err("InvalidInstanceID.NotFound".into()));
}

#[tokio::test]
async fn an_account_has_its_bound_and_a_used_up_pool_does_not_stop_a_launch() {
    let a = Rehearsal::with(|config| {
        config.max_addresses = 2;
        config.network.elastic = "172.29.0.252/30".into();
    })
    .await;
    for _ in 0..2 {
        allocate(&a).await;
    }
    assert_eq!(a.ask("AllocateAddress").await, Err("AddressLimitExceeded".into()));
    assert_eq!(a.ask("AllocateAddress&Domain=moon").await, Err("InvalidParameterValue".into()));
    let (last, none) = (a.launch("").await, a.launch("").await);
    assert!(public_ip(&a, &last).await.is_some());
    assert_eq!(public_ip(&a, &none).await, None);
    let stranger = a.another_account().await;
    assert_eq!(a.ask_as(&stranger, "AllocateAddress").await, Err("InsufficientAddressCapacity".into()));
    // A dry run takes nothing.
    assert_eq!(a.all("DescribeAddresses", "publicIp").await.len(), 2);
}

#[tokio::test]
async fn automatic_addresses_go_with_a_stop_and_all_addresses_with_the_end() {
    let a = Rehearsal::new().await;
    let instance = a.launch("PrivateIpAddress=172.31.0.77").await;
    a.seen(&instance, Observed::Running, |_| {}).await;
    assert_eq!(
        a.ask(&format!("RunInstances&ImageId={}&MinCount=1&MaxCount=1&PrivateIpAddress=172.31.0.77", a.image)).await,
        Err("InvalidIPAddress.InUse".into())
    );
    a.ask(&format!("StopInstances&InstanceId.1={instance}")).await.unwrap();
    a.seen(&instance, Observed::Stopped, |_| {}).await;
    assert_eq!(public_ip(&a, &instance).await, None);
    a.ask(&format!("StartInstances&InstanceId.1={instance}")).await.unwrap();
    a.seen(&instance, Observed::Running, |_| {}).await;
    assert!(public_ip(&a, &instance).await.is_some());
    let (id, _) = allocate(&a).await;
    a.ask(&format!("AssociateAddress&AllocationId={id}&InstanceId={instance}")).await.unwrap();
    a.ask(&format!("TerminateInstances&InstanceId.1={instance}")).await.unwrap();
    a.seen(&instance, Observed::Gone, |_| {}).await;
    assert_eq!(a.all("DescribeNetworkInterfaces", "networkInterfaceId").await, Vec::<String>::new());
    a.ask(&format!("ReleaseAddress&AllocationId={id}")).await.unwrap();
    a.launch("PrivateIpAddress=172.31.0.77").await;
}
