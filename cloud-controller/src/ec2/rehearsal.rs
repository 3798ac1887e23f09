//! A cloud-controller without tiers, for tests of rules: a real store (SQLite, or the PostgreSQL
//! that MALLEE_TEST_POSTGRES names), an account, a default VPC, an image that is there.
//! What zones would report is said by the test.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use mallee_aws::{id::MachineImageId, paging::TokenKey, params::Params};
use mallee_service::{Clock, Faults, pki::Ca, process::About, seal::SealingKey};
use mallee_store::{Error as StoreError, Store};
use mallee_tiers::{
    Export, ExportAddress, Generation, InstanceReport, Observed, Peer, Role, SnapshotObserved, SnapshotReport,
    VolumeObserved, VolumeReport,
};

use super::{SERVICE, image, instance, snapshot, volume};
use crate::{
    Cloud, Config, Outcome, Pokes, Principal, Refusal, account, bundling::Bundling, identity_document::IdentityKey,
    keyring::Keyring, network, schema, service, service::Call, zone::Tiers,
};

pub struct Rehearsal {
    pub cloud: Arc<Cloud>,
    pub account: String,
    pub image: String,
    pub clock: Arc<AtomicI64>,
    _dir: tempfile::TempDir,
}

impl Rehearsal {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(configure: impl Fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config: Config = toml::from_str(&format!(
            "name = \"test\"\nstate = {:?}\nlisten = []\nzones = [\"z-1a\", \"z-1b\"]",
            dir.path()
        ))
        .unwrap();
        configure(&mut config);
        let engine = match std::env::var("MALLEE_TEST_POSTGRES") {
            Ok(url) => {
                mallee_store::Config::Postgres { url, schema: format!("rehearsal_{}", uuid::Uuid::new_v4().simple()) }
            }
            Err(_) => mallee_store::Config::Sqlite { path: dir.path().join("store.db") },
        };
        // PostgreSQL's client has a runtime of its own, which cannot be started inside another.
        let store =
            tokio::task::spawn_blocking(move || Store::open(&engine, schema::MIGRATIONS)).await.unwrap().unwrap();
        let now = Arc::new(AtomicI64::new(1_795_136_523_000));
        let clock = Clock::Manual(now.clone());
        let faults = Faults::new(clock.clone());
        let sealing = SealingKey::open_or_create(&dir.path().join("sealing.key")).unwrap();
        let peer = Peer::new(Role::CloudController, "", "test");
        let cloud = Arc::new(Cloud {
            about: About::new(peer, "0", String::new(), clock.clone(), faults.clone()),
            config,
            store,
            clock,
            faults,
            pokes: Pokes::default(),
            token_key: TokenKey::new([1; 32]),
            sealing,
            keyring: Keyring::default(),
            ca: Ca::open_or_create(&dir.path().join("ca"), "test").unwrap(),
            bundling: Bundling::open_or_create(dir.path()).unwrap(),
            identity_key: IdentityKey::open_or_create(dir.path()).unwrap(),
            tiers: Tiers::default(),
            identities_changed: tokio::sync::watch::channel(0).0,
        });
        let account = new_account(&cloud, "one").await;
        let image = new_image(&cloud, &account).await;
        Self { cloud, account, image, clock: now, _dir: dir }
    }

    pub async fn another_account(&self) -> String {
        new_account(&self.cloud, "two").await
    }

    /// Milliseconds pass.
    pub fn pass(&self, ms: i64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    /// The answer's XML, or the code of the refusal.
    pub async fn ask(&self, request: &str) -> Result<String, String> {
        self.ask_as(&self.account, request).await
    }

    pub async fn ask_as(&self, account: &str, request: &str) -> Result<String, String> {
        let params =
            Params::parse(format!("Version=2016-11-15&Action={request}").as_bytes()).map_err(|e| e.code.to_string())?;
        let principal = Principal {
            account: account.to_owned(),
            account_name: "test".into(),
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.to_owned(),
            access_key: "AKIATEST".into(),
        };
        let call = Call { cloud: self.cloud.clone(), principal, params, request_id: "r".into(), now: self.cloud.now() };
        service::run(&SERVICE, &call).await.map_err(|e| {
            assert!(e.cause.is_none(), "{request}: {:?}", e.cause);
            e.code().to_owned()
        })
    }

    pub async fn launch(&self, more: &str) -> String {
        let answer =
            self.ask(&format!("RunInstances&ImageId={}&MinCount=1&MaxCount=1&{more}", self.image)).await.unwrap();
        first(&answer, "instanceId")
    }

    /// Every value of an element in the answer to a request.
    pub async fn all(&self, request: &str, element: &str) -> Vec<String> {
        all(&self.ask(request).await.unwrap(), element)
    }

    pub async fn state(&self, instance: &str) -> String {
        let answer = self.ask(&format!("DescribeInstances&InstanceId.1={instance}")).await.unwrap();
        first(&answer[answer.find("<instanceState>").unwrap()..], "name")
    }

    pub async fn row(&self, instance: &str) -> instance::Instance {
        let id = instance.to_owned();
        self.cloud
            .store
            .read("read", move |tx| instance::any(tx, &id))
            .await
            .unwrap_or_else(|e: StoreError| panic!("{e}"))
            .unwrap()
    }

    /// The zone reports this of an instance, having acted on its newest wish.
    pub async fn seen(&self, instance: &str, observed: Observed, change: impl Fn(&mut InstanceReport)) {
        let generation = self.row(instance).await.generation;
        let mut report =
            InstanceReport { generation, node: Some("n1".into()), ..InstanceReport::new(instance, observed) };
        report.started = (observed == Observed::Running).then_some(self.cloud.now());
        change(&mut report);
        self.report(report).await;
    }

    pub async fn report(&self, report: InstanceReport) {
        let zone = self.row(&report.id).await.zone;
        self.report_of(&zone, report).await;
    }

    /// A zone's report, which need not be about an instance of its own.
    pub async fn report_of(&self, zone: &str, report: InstanceReport) -> instance::Consequences {
        let (zone, now) = (zone.to_owned(), self.cloud.now());
        let taken: Outcome<_> =
            self.cloud.store.write("report", move |tx| instance::take_report(tx, &zone, &report, now)).await;
        taken.unwrap()
    }

    /// The body the zone is sent now.
    pub async fn body(&self, instance: &str) -> mallee_tiers::Instance {
        let ids = std::iter::once(instance.to_owned()).collect();
        let (zone, cloud) = (self.row(instance).await.zone, self.cloud.clone());
        let bodies: Outcome<_> =
            self.cloud.store.read("render", move |tx| instance::render(tx, &cloud, &zone, &ids)).await;
        bodies.unwrap().pop().unwrap().1.unwrap()
    }

    /// What the storage-controller is sent of a volume now.
    pub async fn wanted_volume(&self, id: &str) -> mallee_tiers::Volume {
        let id = id.to_owned();
        let read: Result<_, StoreError> = self
            .cloud
            .store
            .read("read", move |tx| {
                let attachment = volume::attachment_of(tx, &id)?;
                Ok(volume::wanted(&volume::any(tx, &id)?.unwrap(), attachment.as_ref(), None))
            })
            .await;
        read.unwrap()
    }

    /// The storage-controller cannot make the volume, and says why.
    pub async fn refuse_volume(&self, id: &str, reason: &str) {
        let wanted = self.wanted_volume(id).await;
        self.report_volume(VolumeReport {
            id: id.to_owned(),
            generation: wanted.generation,
            observed: VolumeObserved::Failed,
            reason: reason.to_owned(),
            export: None,
            allocated: 0,
            size_gib: wanted.size_gib,
            needs_source: false,
        })
        .await;
    }

    /// The storage-controller does what it is asked for the volume, and reports it.
    pub async fn serve(&self, id: &str) {
        let wanted = self.wanted_volume(id).await;
        let export = wanted.export_for.map(|attachment| Export {
            name: format!("export-{attachment}"),
            attachment,
            address: ExportAddress::Unix("/run/x.sock".into()),
            server: None,
        });
        let observed = match wanted.desired {
            mallee_tiers::VolumeDesired::Deleted => VolumeObserved::Gone,
            _ => VolumeObserved::Ready,
        };
        let report = VolumeReport {
            id: id.to_owned(),
            generation: wanted.generation,
            observed,
            reason: String::new(),
            export,
            allocated: 0,
            size_gib: wanted.size_gib,
            needs_source: false,
        };
        self.report_volume(report).await;
    }

    async fn report_volume(&self, report: VolumeReport) {
        let now = self.cloud.now();
        let taken: Outcome<_> = self
            .cloud
            .store
            .write("report", move |tx| {
                let zone = volume::any(tx, &report.id)?.unwrap().zone;
                volume::take_report(tx, &zone, &report, now)
            })
            .await;
        taken.unwrap();
    }
}

impl Rehearsal {
    /// The zone reports this of a snapshot.
    pub async fn seen_snapshot(&self, id: &str, observed: SnapshotObserved) {
        let (id, now) = (id.to_owned(), self.cloud.now());
        let taken: Result<(), StoreError> = self
            .cloud
            .store
            .write("report", move |tx| {
                let row = snapshot::any(tx, &id)?.unwrap();
                let report = SnapshotReport {
                    id: id.clone(),
                    generation: row.generation,
                    observed,
                    reason: if observed == SnapshotObserved::Failed { "no room".into() } else { String::new() },
                    percent: 50,
                    attempt: row.attempt,
                    manifest: (observed == SnapshotObserved::Uploaded).then(|| "ab".repeat(32)),
                    sent: 0,
                    size_gib: row.size_gib,
                };
                snapshot::take_report(tx, &row.zone, &report, now).map(drop)
            })
            .await;
        taken.unwrap();
    }

    /// All of it was uploaded, and found.
    pub async fn complete(&self, id: &str) {
        self.seen_snapshot(id, SnapshotObserved::Uploaded).await;
        let id = id.to_owned();
        let done: Result<_, StoreError> =
            self.cloud.store.write("complete", move |tx| snapshot::set_accepted(tx, &id)).await;
        done.unwrap();
    }

    /// A complete snapshot of a volume of this size.
    pub async fn snapshot(&self, gib: u64) -> String {
        let made = self.ask(&format!("CreateVolume&AvailabilityZone=z-1a&Size={gib}")).await.unwrap();
        let volume = first(&made, "volumeId");
        self.serve(&volume).await;
        let id = first(&self.ask(&format!("CreateSnapshot&VolumeId={volume}")).await.unwrap(), "snapshotId");
        self.complete(&id).await;
        self.ask(&format!("DeleteVolume&VolumeId={volume}")).await.unwrap();
        self.serve(&volume).await;
        id
    }

    /// An image on a snapshot of 2 GiB.
    pub async fn image_on_snapshot(&self, more: &str) -> String {
        let snapshot = self.snapshot(2).await;
        let request = format!(
            "RegisterImage&Name=on-{snapshot}&BlockDeviceMapping.1.DeviceName=/dev/sda1\
             &BlockDeviceMapping.1.Ebs.SnapshotId={snapshot}{more}"
        );
        first(&self.ask(&request).await.unwrap(), "imageId")
    }
}

async fn new_account(cloud: &Arc<Cloud>, name: &str) -> String {
    let new = account::New::named(name, &cloud.sealing, cloud.now()).unwrap();
    let id = new.account.id.clone();
    let (config, account, now) = (cloud.config.clone(), id.clone(), cloud.now());
    let made: Outcome<()> = cloud
        .store
        .write("make an account", move |tx| {
            new.insert(tx)?;
            network::create_default_vpc(tx, &config, &account, now)?;
            Ok::<_, Refusal>(())
        })
        .await;
    made.unwrap();
    id
}

async fn new_image(cloud: &Arc<Cloud>, account: &str) -> String {
    let id = MachineImageId::from_random(rand::random());
    let image = image::Image {
        id: mallee_aws::id::ImageId::Machine(id.clone()),
        account: account.to_owned(),
        name: format!("image {id}"),
        location: "bucket/mini.manifest.xml".into(),
        kind: image::Kind::Machine,
        architecture: "x86_64".into(),
        description: None,
        kernel: None,
        ramdisk: None,
        root_device: "/dev/sda1".into(),
        tokens_required: false,
        state: image::State::Available,
        reason: String::new(),
        progress: 100,
        proof: image::Proof::Unsigned,
        digest: Some("ab".repeat(32)),
        size: 1 << 20,
        created: cloud.now(),
        mappings: Vec::new(),
        source_instance: None,
    };
    let written: Result<(), StoreError> = cloud.store.write("make an image", move |tx| image::insert(tx, &image)).await;
    written.unwrap();
    id.to_string()
}

pub fn all(xml: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    xml.split(&open).skip(1).filter_map(|rest| rest.split_once(&close)).map(|(value, _)| value.to_owned()).collect()
}

pub fn first(xml: &str, element: &str) -> String {
    all(xml, element).into_iter().next().unwrap_or_else(|| panic!("no {element} in {xml}"))
}

/// An older generation than any row has.
pub const OLD: Generation = Generation { epoch: 0, counter: 0 };
