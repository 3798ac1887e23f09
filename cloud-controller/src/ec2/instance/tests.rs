//! The rules of instances on a real store.

use mallee_tiers::{InstanceReport, Observed};

use crate::ec2::rehearsal::{OLD, Rehearsal, all, first};

fn run(stage: &Rehearsal, count: u64, more: &str) -> String {
    format!("RunInstances&ImageId={}&MinCount={count}&MaxCount={count}&{more}", stage.image)
}

#[tokio::test]
async fn a_launch_answers_pending_and_is_described_with_all_that_clients_need() {
    let stage = Rehearsal::new().await;
    stage.ask("CreateSecurityGroup&GroupName=web&GroupDescription=w").await.unwrap();
    let answer = stage
        .ask(&run(
            &stage,
            2,
            "SecurityGroup.1=web&InstanceType=mini.nano&UserData=aGVsbG8%3D&TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=a",
        ))
        .await
        .unwrap();
    assert_eq!(all(&answer, "instanceId").len(), 2);
    assert_eq!(all(&answer, "reservationId").len(), 1);
    assert_eq!(all(&answer, "amiLaunchIndex"), ["0", "1"]);
    let described = stage.ask("DescribeInstances&Filter.1.Name=tag:Name&Filter.1.Value.1=a").await.unwrap();
    for part in [
        "<instanceState><code>0</code><name>pending</name></instanceState>",
        "<placement><availabilityZone>z-1a</availabilityZone>",
        "<groupName>web</groupName>",
        "<rootDeviceType>instance-store</rootDeviceType>",
        "<metadataOptions><state>applied</state><httpTokens>required</httpTokens><httpPutResponseHopLimit>2</httpPutResponseHopLimit>",
        "<maintenanceOptions>",
        "<networkInterfaceSet><item><networkInterfaceId>eni-",
        "<sourceDestCheck>true</sourceDestCheck>",
        "<blockDeviceMapping/>",
        "<productCodes/>",
        "<tagSet><item><key>Name</key><value>a</value></item></tagSet>",
    ] {
        assert!(described.contains(part), "{part} in {described}");
    }
    assert_eq!(stage.all("DescribeInstances&Filter.1.Name=tag:Name&Filter.1.Value.1=b", "instanceId").await.len(), 0);
}

#[tokio::test]
async fn the_same_client_token_never_makes_two() {
    let stage = Rehearsal::new().await;
    let ask = run(&stage, 2, "ClientToken=once");
    assert_eq!(stage.ask(&format!("{ask}&DryRun=true")).await, Err("DryRunOperation".into()));
    let one = all(&stage.ask(&ask).await.unwrap(), "instanceId");
    let two = all(&stage.ask(&ask).await.unwrap(), "instanceId");
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(sorted(one), sorted(two));
    assert_eq!(stage.ask(&run(&stage, 3, "ClientToken=once")).await, Err("IdempotentParameterMismatch".into()));
    let mut asks: Vec<_> =
        (0..8).map(|_| stage.ask("CreateVolume&AvailabilityZone=z-1a&Size=1&ClientToken=v")).collect();
    let answers = futures_util::future::join_all(asks.drain(..)).await;
    let ids: std::collections::BTreeSet<String> = answers.into_iter().map(|a| first(&a.unwrap(), "volumeId")).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(stage.all("DescribeVolumes", "volumeId").await.len(), 1);
    assert_eq!(stage.all("DescribeInstances", "instanceId").await.len(), 2);
}

#[tokio::test]
async fn refusals_have_aws_codes_and_leave_nothing_behind() {
    let stage = Rehearsal::with(|config| config.max_instances = 5).await;
    for (more, code) in [
        ("MaxCount=10000", "InstanceLimitExceeded"),
        ("MinCount=0", "InvalidParameterValue"),
        ("MinCount=3&MaxCount=2", "InvalidParameterValue"),
        ("ImageId=ami-00000000000000000", "InvalidAMIID.NotFound"),
        ("ImageId=ami-1", "InvalidAMIID.Malformed"),
        ("ImageId=aki-00000000000000000", "InvalidAMIID.Malformed"),
        ("InstanceType=t9.huge", "InvalidParameterValue"),
        ("KeyName=nobody", "InvalidKeyPair.NotFound"),
        ("SecurityGroup.1=nobody", "InvalidGroup.NotFound"),
        ("SubnetId=subnet-00000000000000000", "InvalidSubnetID.NotFound"),
        ("Placement.AvailabilityZone=z-9z", "InvalidParameterValue"),
        ("UserData=%21", "InvalidUserData.Malformed"),
        ("PrivateIpAddress=10.0.0.9", "InvalidParameterValue"),
        ("Colour=red", "UnknownParameter"),
        ("LaunchTemplate.LaunchTemplateId=lt-1", "Unsupported"),
        ("IamInstanceProfile.Name=x", "Unsupported"),
        ("NetworkInterface.1.NetworkInterfaceId=eni-00000000000000000", "InvalidNetworkInterfaceID.NotFound"),
        (
            "BlockDeviceMapping.1.DeviceName=/dev/sdb&BlockDeviceMapping.1.Ebs.SnapshotId=snap-00000000000000000",
            "InvalidSnapshot.NotFound",
        ),
        ("BlockDeviceMapping.1.DeviceName=/dev/sdb", "InvalidBlockDeviceMapping"),
        ("TagSpecification.1.ResourceType=vpc&TagSpecification.1.Tag.1.Key=a", "InvalidParameterValue"),
        ("DryRun=true", "DryRunOperation"),
    ] {
        let mut params = vec![("ImageId", stage.image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
        for pair in more.split('&') {
            let (name, value) = pair.split_once('=').unwrap();
            params.retain(|(n, _)| *n != name);
            params.push((name, value));
        }
        let request: String = params.iter().map(|(n, v)| format!("&{n}={v}")).collect();
        assert_eq!(stage.ask(&format!("RunInstances{request}")).await.unwrap_err(), code, "{more}");
    }
    assert_eq!(stage.ask("RunInstances&MinCount=1&MaxCount=1").await, Err("MissingParameter".into()));
    assert!(stage.all("DescribeInstances", "instanceId").await.is_empty());
    assert!(stage.all("DescribeNetworkInterfaces", "networkInterfaceId").await.is_empty());
    stage.ask(&run(&stage, 3, "")).await.unwrap();
    assert_eq!(stage.ask(&run(&stage, 3, "")).await, Err("InstanceLimitExceeded".into()));
}

#[tokio::test]
async fn of_many_at_the_limit_exactly_as_many_fit_as_there_is_room() {
    let stage = Rehearsal::with(|config| config.max_instances = 5).await;
    let ask = run(&stage, 1, "");
    let answers = futures_util::future::join_all((0..12).map(|_| stage.ask(&ask))).await;
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 5);
    assert!(answers.iter().filter_map(|a| a.as_ref().err()).all(|code| code == "InstanceLimitExceeded"));
}

#[tokio::test]
async fn the_life_of_an_instance() {
    let stage = Rehearsal::new().await;
    let id = stage.launch("").await;
    let address = first(&stage.ask("DescribeInstances").await.unwrap(), "privateIpAddress");
    assert_eq!(stage.ask(&format!("StopInstances&InstanceId.1={id}")).await, Err("IncorrectInstanceState".into()));
    stage.seen(&id, Observed::Running, |_| {}).await;
    assert_eq!(stage.state(&id).await, "running");
    assert_eq!(stage.all("DescribeInstanceStatus", "status").await, ["ok", "passed", "ok", "passed"]);
    stage.ask(&format!("RebootInstances&InstanceId.1={id}")).await.unwrap();
    assert_eq!(stage.body(&id).await.reboots, 1);

    let stopping = stage.ask(&format!("StopInstances&InstanceId.1={id}")).await.unwrap();
    assert_eq!(all(&stopping, "name"), ["stopping", "running"]);
    assert_eq!(stage.ask(&format!("StartInstances&InstanceId.1={id}")).await, Err("IncorrectInstanceState".into()));
    assert!(stage.all("DescribeInstanceStatus", "instanceId").await.is_empty());
    stage.seen(&id, Observed::Stopped, |_| {}).await;
    assert_eq!(stage.state(&id).await, "stopped");
    stage.ask(&format!("ModifyInstanceAttribute&InstanceId={id}&InstanceType.Value=mini.nano")).await.unwrap();
    assert_eq!(stage.body(&id).await.memory_mib, 128);

    stage.ask(&format!("StartInstances&InstanceId.1={id}")).await.unwrap();
    assert_eq!(stage.state(&id).await, "pending");
    stage.seen(&id, Observed::Running, |_| {}).await;
    assert_eq!(
        stage.ask(&format!("ModifyInstanceAttribute&InstanceId={id}&InstanceType.Value=t2.micro")).await,
        Err("IncorrectInstanceState".into())
    );

    stage.ask(&format!("ModifyInstanceAttribute&InstanceId={id}&DisableApiTermination.Value=true")).await.unwrap();
    assert_eq!(stage.ask(&format!("TerminateInstances&InstanceId.1={id}")).await, Err("OperationNotPermitted".into()));
    stage
        .ask(&format!("ModifyInstanceAttribute&InstanceId={id}&Attribute=disableApiTermination&Value=false"))
        .await
        .unwrap();
    for _ in 0..2 {
        let answer = stage.ask(&format!("TerminateInstances&InstanceId.1={id}")).await.unwrap();
        assert_eq!(all(&answer, "name")[0], "shutting-down");
    }
    let taken = stage
        .ask(&format!("RunInstances&ImageId={}&MinCount=1&MaxCount=1&PrivateIpAddress={address}", stage.image))
        .await;
    assert_eq!(taken, Err("InvalidIPAddress.InUse".into()), "the guest might still use it");
    stage.seen(&id, Observed::Gone, |r| r.last_console = Some("Ynll".into())).await;
    assert_eq!(stage.state(&id).await, "terminated");
    assert_eq!(stage.all(&format!("GetConsoleOutput&InstanceId={id}"), "output").await, ["Ynll"]);
    assert!(stage.all("DescribeNetworkInterfaces", "networkInterfaceId").await.is_empty());
}

#[tokio::test]
async fn a_guest_that_powers_off_is_stopped_or_terminated_as_it_was_asked_for() {
    let stage = Rehearsal::new().await;
    for (behavior, then, seen, ended) in [
        ("stop", "stopping", Observed::Stopped, "stopped"),
        ("terminate", "shutting-down", Observed::Gone, "terminated"),
    ] {
        let id = stage.launch(&format!("InstanceInitiatedShutdownBehavior={behavior}")).await;
        stage.seen(&id, Observed::Running, |_| {}).await;
        stage.seen(&id, Observed::Stopped, |r| (r.guest_off, r.generation) = (true, OLD)).await;
        assert_ne!(stage.state(&id).await, ended, "an old report decides nothing");
        stage.seen(&id, Observed::Running, |_| {}).await;
        stage.seen(&id, Observed::Unknown, |r| r.guest_off = true).await;
        assert_eq!(stage.state(&id).await, then);
        stage.seen(&id, seen, |_| {}).await;
        assert_eq!(stage.state(&id).await, ended);
        let described = stage.ask(&format!("DescribeInstances&InstanceId.1={id}")).await.unwrap();
        assert!(described.contains("Client.InstanceInitiatedShutdown"));
    }
}

#[tokio::test]
async fn one_that_cannot_be_brought_up_ends_and_says_why() {
    let stage = Rehearsal::new().await;
    let id = stage.launch("").await;
    stage.seen(&id, Observed::Failed, |r| r.reason = "image: the blob is damaged".into()).await;
    assert_eq!(stage.state(&id).await, "shutting-down");
    stage.seen(&id, Observed::Gone, |r| r.reason = "image: the blob is damaged".into()).await;
    let described = stage.ask("DescribeInstances").await.unwrap();
    assert!(described.contains("Server.InternalError: image: the blob is damaged"), "{described}");
}

#[tokio::test]
async fn another_accounts_instance_looks_like_none() {
    let stage = Rehearsal::new().await;
    let id = stage.launch("").await;
    let other = stage.another_account().await;
    for action in ["DescribeInstances", "TerminateInstances", "StopInstances", "RebootInstances", "StartInstances"] {
        let theirs = stage.ask_as(&other, &format!("{action}&InstanceId.1={id}")).await;
        assert_eq!(theirs, Err("InvalidInstanceID.NotFound".into()), "{action}");
    }
    assert!(all(&stage.ask_as(&other, "DescribeInstances").await.unwrap(), "instanceId").is_empty());
    let image = stage.image.clone();
    let launch = format!("RunInstances&ImageId={image}&MinCount=1&MaxCount=1");
    assert_eq!(stage.ask_as(&other, &launch).await, Err("InvalidAMIID.NotFound".into()));
    stage.ask(&format!("ModifyImageAttribute&ImageId={image}&LaunchPermission.Add.1.UserId={other}")).await.unwrap();
    stage.ask_as(&other, &launch).await.unwrap();
    assert_eq!(stage.ask_as(&other, &format!("DeregisterImage&ImageId={image}")).await, Err("AuthFailure".into()));
}

#[tokio::test]
async fn the_body_has_the_metadata_of_ec2() {
    let stage = Rehearsal::new().await;
    let key = stage.ask("CreateKeyPair&KeyName=me&KeyType=ed25519").await.unwrap();
    assert!(key.contains("OPENSSH"));
    let id = stage
        .launch(
            "KeyName=me&UserData=aGVsbG8%3D&MetadataOptions.InstanceMetadataTags=enabled&MetadataOptions.HttpTokens=required\
             &TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=role&TagSpecification.1.Tag.1.Value=web",
        )
        .await;
    let body = stage.body(&id).await;
    let tree = &body.metadata.tree;
    let value = |key: &str| tree.get(key).cloned().unwrap_or_else(|| panic!("{key} in {tree:?}"));
    let interface = body.interfaces.first().unwrap();
    assert_eq!(value("meta-data/instance-id"), id);
    assert_eq!(value("meta-data/local-ipv4"), interface.address.to_string());
    assert_eq!(value("meta-data/public-keys"), "0=me");
    assert!(value("meta-data/public-keys/0/openssh-key").starts_with("ssh-ed25519 "));
    assert_eq!(value("meta-data/tags/instance/role"), "web");
    assert_eq!(
        value(&format!("meta-data/network/interfaces/macs/{}/vpc-ipv4-cidr-block", interface.mac)),
        "172.31.0.0/16"
    );
    let document: serde_json::Value = serde_json::from_str(&value("dynamic/instance-identity/document")).unwrap();
    assert_eq!(document["instanceId"], id.as_str());
    assert_eq!(body.metadata.user_data.as_deref(), Some("aGVsbG8="));
    assert!(body.metadata.tokens_required);
    let before = stage.row(&id).await.generation;
    stage.ask(&format!("CreateTags&ResourceId.1={id}&Tag.1.Key=role&Tag.1.Value=db")).await.unwrap();
    assert!(stage.row(&id).await.generation > before, "shown tags are sent anew");
    assert_eq!(stage.body(&id).await.metadata.tree["meta-data/tags/instance/role"], "db");
}

#[tokio::test]
async fn pages_cover_everything_once() {
    let stage = Rehearsal::new().await;
    stage.ask(&run(&stage, 23, "")).await.unwrap();
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let answer = stage.ask(&format!("DescribeInstances&MaxResults=10&NextToken={token}")).await.unwrap();
        seen.extend(all(&answer, "instanceId").into_iter().filter(|id| id.starts_with("i-")));
        match all(&answer, "nextToken").pop() {
            Some(next) => token = next,
            None => break,
        }
    }
    seen.sort();
    let count = seen.len();
    seen.dedup();
    assert_eq!((count, seen.len()), (23, 23));
}

#[tokio::test]
async fn only_options_that_the_node_acts_on_make_a_newer_wish() {
    let stage = Rehearsal::new().await;
    let id = stage.launch("").await;
    for (request, is_newer) in [
        (format!("ModifyInstanceAttribute&InstanceId={id}&DisableApiStop.Value=true"), false),
        (format!("ModifyInstanceAttribute&InstanceId={id}&InstanceInitiatedShutdownBehavior.Value=terminate"), false),
        (format!("CreateTags&ResourceId.1={id}&Tag.1.Key=a&Tag.1.Value=b"), false),
        (format!("ModifyInstanceMetadataOptions&InstanceId={id}&HttpTokens=required"), true),
        (
            "AuthorizeSecurityGroupIngress&GroupName=default&IpProtocol=tcp&FromPort=22&ToPort=22&CidrIp=0.0.0.0/0"
                .to_owned(),
            false,
        ),
    ] {
        let before = stage.row(&id).await.generation;
        stage.ask(&request).await.unwrap();
        assert_eq!(stage.row(&id).await.generation > before, is_newer, "{request}");
    }
}

#[tokio::test]
async fn what_ended_an_hour_ago_is_forgotten_with_all_that_hung_on_it() {
    let stage = Rehearsal::new().await;
    let id = stage
        .launch(
            "TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b",
        )
        .await;
    stage.ask(&format!("TerminateInstances&InstanceId.1={id}")).await.unwrap();
    stage.seen(&id, Observed::Gone, |_| {}).await;
    let sweep = crate::zone::sweep(&stage.cloud);
    stage.pass(3_599_000);
    mallee_service::Reconciler::pass(&sweep).await;
    assert_eq!(stage.state(&id).await, "terminated");
    stage.pass(2_000);
    mallee_service::Reconciler::pass(&sweep).await;
    let described = stage.ask(&format!("DescribeInstances&InstanceId.1={id}")).await;
    assert_eq!(described, Err("InvalidInstanceID.NotFound".into()));
    assert!(stage.all("DescribeTags", "resourceId").await.is_empty());
}

#[tokio::test]
async fn a_zone_cannot_end_an_instance_of_another_zone() {
    let stage = Rehearsal::new().await;
    let id = stage.launch("Placement.AvailabilityZone=z-1a").await;
    stage.seen(&id, Observed::Running, |_| {}).await;
    stage.ask(&format!("TerminateInstances&InstanceId.1={id}")).await.unwrap();
    let generation = stage.row(&id).await.generation;
    let made_up = |observed| InstanceReport { generation, ..InstanceReport::new(&id, observed) };
    stage.report_of("z-1b", made_up(Observed::Gone)).await;
    assert_eq!(stage.state(&id).await, "shutting-down");
    assert!(stage.report_of("z-1b", made_up(Observed::Running)).await.orphan, "it is shown where it should not be");
    stage.report_of("z-1a", made_up(Observed::Gone)).await;
    assert_eq!(stage.state(&id).await, "terminated");
}

#[tokio::test]
async fn a_tag_key_given_twice_is_refused_and_launches_nothing() {
    let stage = Rehearsal::new().await;
    let twice = "TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=1\
                 &TagSpecification.1.Tag.2.Key=a&TagSpecification.1.Tag.2.Value=2";
    assert_eq!(stage.ask(&run(&stage, 1, twice)).await, Err("InvalidParameterValue".into()));
    assert!(stage.all("DescribeInstances", "instanceId").await.is_empty());
}
