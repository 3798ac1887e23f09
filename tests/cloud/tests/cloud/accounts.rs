//! Who is let in: accounts, machines, tiers.

use std::sync::Arc;

use http::Method;
use mallee_service::{Identity, TierHttp, join};
use mallee_tests_cloud::{Cloud, Signed, Tier, eventually};
use mallee_tiers::{
    AccountAsked, CloudClient, ClusterClient, IdentitiesAsked, Role, StatusAsked, TierErrorKind, TokenAsked,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_once_and_its_keys_work_at_both_fronts_while_the_cloud_controller_is_down() {
    let cloud = Cloud::start().await;
    let user = cloud.account("carol").await;
    let again = cloud.account("carol").await;
    assert_eq!(user.key.account, again.key.account);
    assert_eq!(user.key.account.len(), 12);
    let keys = cloud.admin().account_keys(&AccountAsked { name: "carol".into() }).await.unwrap();
    assert_eq!(keys.access_key, user.key.access_key.as_str());
    user.s3(Method::PUT, "/carols", "").await.ok();
    // walrus keeps its own sealed copy of identities: it serves known keys without the cloud-controller, also after a restart.
    cloud.kill(&[Tier::CloudController]).await;
    user.s3(Method::PUT, "/carols/object", "kept").await.ok();
    cloud.restart(&[Tier::Walrus]).await;
    assert_eq!(user.s3(Method::GET, "/carols/object", "").await.ok().text(), "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_good_once() {
    let cloud = Cloud::start().await;
    let asked =
        TokenAsked { role: Role::NodeController, zone: "mallee-1a".into(), name: "new-node".into(), seconds: 0 };
    let token = join::Token::decode(&cloud.admin().join_token(&asked).await.unwrap().token.0).unwrap();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    join::join(&token, first.path()).await.unwrap();
    // The same machine may ask again: its first answer may have been lost.
    join::join(&token, first.path()).await.unwrap();
    let refused = join::join(&token, second.path()).await.unwrap_err();
    assert!(refused.kind == TierErrorKind::Refused && refused.message.contains("used"), "{refused}");
    // A token for another cloud's CA is noticed before the secret is sent.
    let mut other = token.clone();
    other.ca = "00".repeat(32);
    let refused = join::join(&other, second.path()).await.unwrap_err();
    assert_eq!(refused.kind, TierErrorKind::Refused, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_answer_only_the_roles_they_serve() {
    let cloud = Cloud::start().await;
    let identity = |tier| Identity::load(&cloud.state_of(tier).join("tls")).unwrap();
    let cloud_address = cloud.address_of(Tier::CloudController).to_string();
    let zone_address = cloud.address_of(Tier::Cluster(0)).to_string();
    let to_cloud = |from| {
        let transport =
            TierHttp::new(&identity(from), &cloud_address, Role::CloudController, "cloud-controller").unwrap();
        CloudClient::new(Arc::new(transport))
    };
    let asked = IdentitiesAsked { since: None, wait_ms: 0 };
    assert!(to_cloud(Tier::Walrus).identities(&asked).await.unwrap().identities.is_some());
    for stranger in [Tier::Node(0, 0), Tier::Cluster(0), Tier::Storage(0)] {
        let refused = to_cloud(stranger).identities(&asked).await.unwrap_err();
        assert_eq!(refused.kind, TierErrorKind::Forbidden, "{stranger:?}: {refused}");
    }
    let node = TierHttp::new(&identity(Tier::Node(0, 0)), &zone_address, Role::ClusterController, "mallee-1a").unwrap();
    let refused = ClusterClient::new(Arc::new(node)).status(&StatusAsked::default()).await.unwrap_err();
    assert_eq!(refused.kind, TierErrorKind::Forbidden, "{refused}");
    // Another cloud's certificate is no certificate.
    let other = Cloud::start().await;
    let foreign = Identity::load(&other.state_of(Tier::Walrus).join("tls")).unwrap();
    let transport = TierHttp::new(&foreign, &cloud_address, Role::CloudController, "cloud-controller").unwrap();
    assert!(CloudClient::new(Arc::new(transport)).identities(&asked).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_certificate_calls_a_tier() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    for tier in cloud.tiers() {
        let to = cloud.address_of(tier);
        for method in ["status", "intend", "observe", "identities", "account_create", "no_such_method"] {
            let target = format!("/-/tiers/{method}");
            let answer = user
                .send(to, "ec2", Method::POST, &target, Default::default(), "{}".into(), Signed::Properly)
                .await
                .unwrap_or_else(|e| panic!("{tier:?} {target}: {e}"));
            assert_eq!(answer.status, 403, "{tier:?} {target}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_shown_and_its_instances_stay_where_they_are() {
    let cloud = Cloud::start_with(mallee_tests_cloud::Options { nodes: 2, lease_ms: 1000, ..Default::default() }).await;
    let id = cloud.launch("").await;
    cloud.instance_is(&id, "running").await;
    let nodes = [Tier::Node(0, 0), Tier::Node(0, 1)];
    cloud.kill(&nodes).await;
    eventually("both nodes are silent", || async {
        let status = cloud.status().await;
        status.nodes.iter().all(|row| row.node.state == "silent").then_some(())
    })
    .await;
    // It most likely runs on; it is never started a second time elsewhere.
    assert_eq!(cloud.state(&id).await, "running");
    cloud.bring_up(nodes[0]).await;
    cloud.bring_up(nodes[1]).await;
    cloud.wait_for_everybody().await;
    cloud.instance_is(&id, "running").await;
    assert_eq!((cloud.boots(&id), cloud.guests()), (1, 1));
}
