//! TLS against a real ovsdb-server, which shows a certificate and asks for one. A machine without it fails here, on purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mallee_ovsdb::{Client, Error, MonitorTable, Op, Remotes, Row, Tls, value};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};

const DB: &str = "OVN_Northbound";

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate for its own issuer when both have one name.
        params.distinguished_name.push(DnType::CommonName, "a CA of a test");
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap(), key)
    }

    /// A client that believes this CA, and shows a certificate of `shown`.
    fn client(&self, shown: &Ca, name: Option<&str>) -> Tls {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let (certificate, key) = shown.issue("client");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Tls { config: Arc::new(config), name: name.map(str::to_owned) }
    }
}

struct Server {
    _process: Process,
    remotes: Remotes,
    _directory: tempfile::TempDir,
}

impl Server {
    /// One on a free port, with a certificate for `name`.
    async fn start(ca: &Ca, name: &str) -> Server {
        let directory = tempfile::Builder::new().prefix("ovsdb-tls").tempdir_in("/tmp").unwrap();
        let at = |file: &str| directory.path().join(file);
        let made =
            Command::new("ovsdb-tool").arg("create").arg(at("nb.db")).arg("/usr/share/ovn/ovn-nb.ovsschema").status();
        assert!(made.expect("ovsdb-tool is not installed").success(), "the OVN northbound schema is missing");
        let (certificate, key) = ca.issue(name);
        std::fs::write(at("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(at("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(at("ca.pem"), ca.0.pem()).unwrap();
        let (process, port) = serve(directory.path()).await;
        Server { _process: process, remotes: format!("ssl:127.0.0.1:{port}").parse().unwrap(), _directory: directory }
    }
}

/// Ends with the test, however that ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// On a port that is free, which its log tells.
async fn serve(directory: &Path) -> (Process, u16) {
    let option = |name: &str, file: &str| format!("--{name}={}", directory.join(file).display());
    let process = Command::new("ovsdb-server")
        .args(["-vconsole:off", "-vsyslog:off", "--remote=pssl:0:127.0.0.1"])
        .args([option("unixctl", "nb.ctl"), option("log-file", "log"), option("private-key", "key.pem")])
        .args([option("certificate", "cert.pem"), option("ca-cert", "ca.pem")])
        .arg(directory.join("nb.db"))
        .stdin(Stdio::null())
        .spawn()
        .expect("ovsdb-server is not installed");
    let process = Process(process);
    for _ in 0..3000 {
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        let told = log.lines().find_map(|line| line.split_once("listening on port ")?.1.trim().parse().ok());
        if let Some(port) = told {
            return (process, port);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("ovsdb-server did not come up");
}

#[tokio::test]
async fn everything_goes_over_tls_however_large_it_is() {
    let ca = Ca::new();
    let server = Server::start(&ca, "127.0.0.1").await;
    let client = Client::connect(&server.remotes, Some(&ca.client(&ca, None))).await.unwrap();
    assert!(client.databases().await.unwrap().contains(&DB.to_owned()));
    let (mut replica, mut monitor) =
        client.replicate(DB, vec![MonitorTable::new("Logical_Switch_Port")]).await.unwrap();
    // A few megabytes each way: more than any buffer between the two.
    let names: Vec<String> = (0..10_000).map(|n| format!("port-{n}")).collect();
    let port = |name: &String| Row::new().with("name", name.as_str()).with("addresses", "0a:00:00:00:00:01 10.0.0.4");
    let mut ops: Vec<Op> =
        names.iter().map(|name| Op::insert("Logical_Switch_Port", port(name)).named(&name.replace('-', "_"))).collect();
    let ports = value::set(names.iter().map(|name| value::named(&name.replace('-', "_"))));
    ops.push(Op::insert("Logical_Switch", Row::new().with("name", "large").with("ports", ports)));
    client.transact(DB, ops).await.unwrap();
    replica.apply(monitor.next().await.unwrap());
    assert_eq!(replica.rows("Logical_Switch_Port").count(), 10_000);
}

#[tokio::test]
async fn only_the_server_that_is_meant_is_believed() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::start(&ca, "nb.cloud-controller.mallee.internal").await;
    let named = ca.client(&ca, Some("nb.cloud-controller.mallee.internal"));
    Client::connect(&server.remotes, Some(&named)).await.unwrap().databases().await.unwrap();
    for (tls, why) in [
        (ca.client(&ca, None), "it is not for that address"),
        (ca.client(&ca, Some("b1.node-controller.mallee.internal")), "it is not for that name"),
        (other.client(&ca, Some("nb.cloud-controller.mallee.internal")), "another CA signed it"),
    ] {
        let error = Client::connect(&server.remotes, Some(&tls)).await.err().expect(why);
        assert!(matches!(&error, Error::Connect { .. }) && error.to_string().contains("certificate"), "{why}: {error}");
    }
    assert!(Client::connect(&server.remotes, None).await.is_err(), "without a certificate of one's own");
}

#[tokio::test]
async fn the_server_lets_in_whom_its_ca_signed_and_nobody_else() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::start(&ca, "127.0.0.1").await;
    // TLS 1.3 tells a client only after the handshake that it is not wanted.
    let asked = match Client::connect(&server.remotes, Some(&ca.client(&other, None))).await {
        Ok(client) => client.databases().await.map(drop),
        Err(error) => Err(error),
    };
    asked.unwrap_err();
    let welcome = Client::connect(&server.remotes, Some(&ca.client(&ca, None))).await.unwrap();
    welcome.databases().await.unwrap();
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_does_not_answer() {
    let ca = Ca::new();
    let server = Server::start(&ca, "127.0.0.1").await;
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let remotes: Remotes =
        format!("unix:/nonexistent/nb.sock,ssl:127.0.0.1:{nobody},{}", server.remotes).parse().unwrap();
    let tls = ca.client(&ca, None);
    Client::connect(&remotes, Some(&tls)).await.unwrap().databases().await.unwrap();
    let gone: Remotes = format!("unix:/nonexistent/nb.sock,ssl:127.0.0.1:{nobody}").parse().unwrap();
    let error = Client::connect(&gone, Some(&tls)).await.err().unwrap().to_string();
    assert!(error.contains(&format!("ssl:127.0.0.1:{nobody}")), "{error}");
}
