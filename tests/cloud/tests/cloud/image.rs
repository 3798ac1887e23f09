//! Images: only what was verified becomes available.

use http::Method;
use mallee_tests_cloud::{
    Client, Cloud, Signed,
    bundle::{self, Bundle, Wrapping},
    form, image_settles,
};
use mallee_tiers::CertificateAdd;
use openssl::pkey::{PKey, Private};

async fn wrap(cloud: &Cloud, user: &Client, name: &str, key: Option<&PKey<Private>>) -> Bundle {
    let certificate = cloud.bundling_certificate().await;
    let wrapping = Wrapping { name, account: &user.key.account, certificate: &certificate, signed_by: key };
    bundle::wrap(&bundle::disk(name), &wrapping).unwrap()
}

async fn register(user: &Client, name: &str, location: &str) -> String {
    user.ec2(&form(&[("Action", "RegisterImage"), ("Name", name), ("ImageLocation", location)])).await.value("imageId")
}

async fn reason(user: &Client, image: &str) -> String {
    let answer = user.ec2(&format!("Action=DescribeImages&ImageId.1={image}")).await;
    answer.xml().first("stateReason").map(|reason| reason.text()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_with_one_flipped_byte_never_becomes_available_and_says_why() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    let mut bundle = wrap(&cloud, user, "flipped", None).await;
    let part = &mut bundle.parts[1].1;
    let middle = part.len() / 2;
    part[middle] ^= 1;
    let location = bundle.upload(user, "flipped-images").await;
    let image = register(user, "flipped", &location).await;
    image_settles(user, &image, "failed").await;
    let told = reason(user, &image).await;
    assert!(told.contains("flipped.part.01"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_signed_by_its_account_or_by_nobody() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    let key = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
    let bundle = wrap(&cloud, user, "signed", Some(&key)).await;
    let location = bundle.upload(user, "signed-images").await;
    let early = register(user, "early", &location).await;
    image_settles(user, &early, "failed").await;
    assert!(reason(user, &early).await.contains("sign"), "{}", reason(user, &early).await);
    // The same bundle once the certificate is the account's.
    let pem = certificate(&key);
    cloud.admin().certificate_add(&CertificateAdd { account: "alice".into(), pem }).await.unwrap();
    let late = register(user, "late", &location).await;
    image_settles(user, &late, "available").await;
    // One changed word inside what was signed.
    let mut changed = bundle;
    changed.manifest = changed.manifest.replace("<architecture>x86_64<", "<architecture>i386<");
    let location = changed.upload(user, "signed-images").await;
    let forged = register(user, "forged", &location).await;
    image_settles(user, &forged, "failed").await;
}

fn certificate(key: &PKey<Private>) -> String {
    let mut name = openssl::x509::X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "alice").unwrap();
    let name = name.build();
    let mut builder = openssl::x509::X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_not_before(&openssl::asn1::Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&openssl::asn1::Asn1Time::days_from_now(30).unwrap()).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.sign(key, openssl::hash::MessageDigest::sha256()).unwrap();
    String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_account_may_not_read_it_cannot_import() {
    let cloud = Cloud::start().await;
    let (alice, mallory) = (cloud.user().await, cloud.account("mallory").await);
    // A bundle that is alice's alone: private objects, made for the cloud.
    let bundle = wrap(&cloud, alice, "private", None).await;
    alice.s3(Method::PUT, "/private-images", "").await.ok();
    for (name, bytes) in &bundle.parts {
        alice.s3(Method::PUT, &format!("/private-images/{name}"), bytes.clone()).await.ok();
    }
    alice.s3(Method::PUT, &format!("/private-images/{}", bundle.manifest_name), bundle.manifest.clone()).await.ok();
    let location = format!("private-images/{}", bundle.manifest_name);
    let asked = form(&[("Action", "RegisterImage"), ("Name", "stolen"), ("ImageLocation", &location)]);
    mallory.ec2(&asked).await.refused_with("InvalidManifest");
    // A manifest that everybody may read does not make its parts so.
    let target = format!("/private-images/{}", bundle.manifest_name);
    let mut public = http::HeaderMap::new();
    public.insert("x-amz-acl", http::HeaderValue::from_static("public-read"));
    let body = bundle.manifest.clone().into();
    alice.send(alice.objects, "s3", Method::PUT, &target, public, body, Signed::Properly).await.unwrap().ok();
    let stolen = register(&mallory, "stolen", &location).await;
    image_settles(&mallory, &stolen, "failed").await;
    let own = register(alice, "own", &location).await;
    image_settles(alice, &own, "available").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_interrupted_by_a_crash_is_finished_afterwards() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    let location = wrap(&cloud, user, "interrupted", None).await.upload(user, "interrupted-images").await;
    let image = register(user, "interrupted", &location).await;
    cloud.restart(&[mallee_tests_cloud::Tier::CloudController, mallee_tests_cloud::Tier::Walrus]).await;
    image_settles(user, &image, "available").await;
}
