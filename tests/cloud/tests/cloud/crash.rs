//! An acknowledged write survives, and no instance is lost, whichever tier dies and how many of them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Method;
use mallee_tests_cloud::{Client, Cloud, Options, Signed, Tier, form};

const PUBLIC_KEY: &str = "c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUpoUXFXS3Rhb2VTZDlQYjE3czBxQ1lscHVGdVV6elR4UUtRU2dUczZyejMgYWxpY2VAZXhhbXBsZQ==";

/// Everything that was acknowledged, by what has to be asked to see it again.
#[derive(Default)]
struct Acknowledged {
    keys: BTreeSet<String>,
    objects: BTreeSet<String>,
}

/// Writes until it is told to end; notes only what was answered with success.
async fn write(user: Client, writer: usize, noted: Arc<Mutex<Acknowledged>>, end: Arc<AtomicBool>) {
    let mut number = 0;
    while !end.load(Ordering::SeqCst) {
        number += 1;
        let name = format!("w{writer}-{number}");
        let import = form(&[("Action", "ImportKeyPair"), ("KeyName", &name), ("PublicKeyMaterial", PUBLIC_KEY)]);
        if user.try_query("ec2", &import, Signed::Properly).await.is_ok_and(|answer| answer.status == 200) {
            noted.lock().unwrap().keys.insert(name.clone());
        }
        let target = format!("/crash/{name}");
        let put = user.send(
            user.objects,
            "s3",
            Method::PUT,
            &target,
            Default::default(),
            name.clone().into(),
            Signed::Properly,
        );
        if put.await.is_ok_and(|answer| answer.status == 200) {
            noted.lock().unwrap().objects.insert(name);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn everything_is_there(user: &Client, noted: &Mutex<Acknowledged>) {
    let (keys, objects) = {
        let noted = noted.lock().unwrap();
        (noted.keys.clone(), noted.objects.clone())
    };
    let there: BTreeSet<String> = user.ec2("Action=DescribeKeyPairs").await.values("keyName").into_iter().collect();
    let lost: Vec<_> = keys.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    for name in objects {
        let object = user.s3(Method::GET, &format!("/crash/{name}"), "").await;
        assert_eq!((object.status, object.text()), (200, name));
    }
}

/// Kills each tier while it is written to, then all at once; `again` says what each round must find.
async fn kill_everything(cloud: &Cloud, again: impl AsyncFn(&Cloud, &[String])) {
    let user = cloud.user().await.clone();
    user.s3(Method::PUT, "/crash", "").await.ok();
    let ids = vec![cloud.launch("").await, cloud.launch("").await];
    for id in &ids {
        cloud.instance_is(id, "running").await;
    }
    let noted = Arc::new(Mutex::new(Acknowledged::default()));
    let mut rounds: Vec<Vec<Tier>> = cloud.tiers().into_iter().map(|tier| vec![tier]).collect();
    rounds.push(cloud.tiers());
    for (round, victims) in rounds.into_iter().enumerate() {
        let end = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> =
            (0..4).map(|n| tokio::spawn(write(user.clone(), round * 10 + n, noted.clone(), end.clone()))).collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        cloud.kill(&victims).await;
        // What is asked while somebody is down is carried out later.
        let late = (victims != cloud.tiers() && victims != [Tier::CloudController]).then_some(());
        let late = match late {
            Some(()) => Some(cloud.launch("").await),
            None => None,
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        for tier in &victims {
            cloud.bring_up(*tier).await;
        }
        cloud.wait_for_everybody().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        end.store(true, Ordering::SeqCst);
        futures_util::future::join_all(writers).await;
        everything_is_there(&user, &noted).await;
        for id in ids.iter().chain(&late) {
            cloud.instance_is(id, "running").await;
        }
        again(cloud, &ids).await;
        if let Some(late) = late {
            cloud.ec2(&format!("Action=TerminateInstances&InstanceId.1={late}")).await.ok();
            cloud.instance_is(&late, "terminated").await;
        }
        assert_eq!(cloud.status().await.orphans, Vec::<String>::new(), "after {victims:?}");
    }
    let noted = noted.lock().unwrap();
    assert!(noted.keys.len() > 50 && noted.objects.len() > 50, "hardly anything was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_that_die_take_no_guest_with_them() {
    let cloud = Cloud::start_with(Options { nodes: 2, ..Options::default() }).await;
    kill_everything(&cloud, async |cloud: &Cloud, ids: &[String]| {
        for id in ids {
            assert_eq!(cloud.boots(id), 1, "{id} was started again");
        }
    })
    .await;
}

/// The real binaries and the real signal.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_any_or_all_binaries_loses_no_acknowledged_write_and_no_instance() {
    let cloud = Cloud::of_processes().await;
    kill_everything(&cloud, async |cloud: &Cloud, _: &[String]| cloud.assert_nobody_crashed()).await;
}
