//! What is done to volumes, and how it is seen that it is done.

use http::Method;
use mallee_tests_cloud::{Answer, Signed, Tier, eventually};

use super::{
    World,
    guest::{export_of, io, whole_slots},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Create,
    CreateFromSnapshot,
    Attach,
    Detach,
    ForceDetach,
    Snapshot,
    /// A volume of a snapshot is read for the first time, and fetched.
    Restore,
    Grow,
    Copy,
    Import,
    DeleteSnapshot,
    Delete,
}

impl Operation {
    pub const ALL: [Self; 12] = [
        Self::Create,
        Self::CreateFromSnapshot,
        Self::Attach,
        Self::Detach,
        Self::ForceDetach,
        Self::Snapshot,
        Self::Restore,
        Self::Grow,
        Self::Copy,
        Self::Import,
        Self::DeleteSnapshot,
        Self::Delete,
    ];

    /// Steps it cannot do without: a list of steps that lacks them was not made of this.
    #[rustfmt::skip]
    pub fn surely(self) -> &'static [(Tier, &'static str)] {
        use Tier::*;
        match self {
            Self::Create => &[(CloudController, "before store: create a volume"), (Storage(0), "after file: volume.raw")],
            Self::CreateFromSnapshot => &[(Storage(0), "before file: source.json"), (Storage(0), "after file: 1.qcow2")],
            Self::Attach => &[
                (CloudController, "before store: attach a volume"), (Storage(0), "after store: make an export"),
                (Storage(0), "before start: export daemon"), (Storage(0), "after store: an export answers"),
                (Node(0, 0), "before machine: attach"),
            ],
            Self::Detach => &[
                (CloudController, "before store: detach a volume"), (Storage(0), "before end: export daemon"),
                (Storage(0), "after store: end an export"), (Node(0, 0), "after machine: detach"),
            ],
            // Nobody waits for the node.
            Self::ForceDetach => &[
                (CloudController, "before store: detach a volume"), (Storage(0), "before end: export daemon"),
                (Storage(0), "after store: end an export"),
            ],
            Self::Snapshot => &[
                (CloudController, "before store: create a snapshot"), (Storage(0), "before daemon: blockdev-snapshot"),
                (Storage(0), "after daemon: blockdev-snapshot"), (Storage(0), "after blob: put"),
                (Storage(0), "before store: a snapshot is uploaded"),
            ],
            Self::Restore => &[(Storage(0), "before daemon: block-stream"), (Storage(0), "before blob: get")],
            Self::Grow => &[
                (Storage(0), "before daemon: block-export-del"), (Storage(0), "after daemon: block-export-del"),
                (Storage(0), "after daemon: block_resize"), (Storage(0), "after daemon: block-export-add"),
                (Node(0, 0), "before machine: fit"),
            ],
            Self::Copy => &[(CloudController, "before store: copy a snapshot")],
            Self::Import => &[(CloudController, "before store: begin an import")],
            Self::DeleteSnapshot => &[(CloudController, "before store: delete a snapshot")],
            Self::Delete => &[(CloudController, "before store: delete a volume"), (Storage(0), "before file: remove all")],
        }
    }
}

/// What an operation works on, made before it begins.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// Names what the operation makes, so that it is found again when an answer was lost.
    pub token: String,
    pub volume: String,
    pub snapshot: String,
    /// Writes the guest was acknowledged when the operation began.
    pub written: u64,
}

impl World {
    pub async fn prepare(&self, operation: Operation, token: String) -> Subject {
        let mut subject = Subject { token, ..Subject::default() };
        match operation {
            Operation::Create | Operation::CreateFromSnapshot | Operation::Copy | Operation::Import => {}
            Operation::Snapshot => {
                self.writer.goes_on().await;
                subject.written = self.writer.count();
            }
            Operation::Attach | Operation::Delete => subject.volume = self.new_volume("Size=1").await,
            Operation::Restore => {
                subject.volume = self.new_volume(&format!("SnapshotId={}", self.snapshot)).await;
            }
            Operation::Detach | Operation::ForceDetach | Operation::Grow => {
                subject.volume = self.new_volume("Size=1").await;
                self.attach(&subject.volume).await;
                io(&self.cloud, &subject.volume, &["write -f -P 9 1M 64k".into()]).await;
            }
            Operation::DeleteSnapshot => {
                subject.snapshot = self.cloud.ec2(&self.create_snapshot(&subject.token)).await.value("snapshotId");
                self.snapshot_is(&subject.snapshot, "completed").await;
            }
        }
        subject
    }

    /// Asks for it, until it was heard, and waits until it is done.
    pub async fn carry_out(&self, operation: Operation, subject: &mut Subject) {
        let token = subject.token.clone();
        match operation {
            Operation::Create | Operation::CreateFromSnapshot => {
                let with = match operation {
                    Operation::Create => "Size=1".into(),
                    _ => format!("SnapshotId={}", self.snapshot),
                };
                let ask = format!("Action=CreateVolume&AvailabilityZone=mallee-1a&ClientToken={token}&{with}");
                subject.volume = self.ask(&ask).await.value("volumeId");
                self.volume_is(&subject.volume, "available").await;
            }
            Operation::Attach => self.attach(&subject.volume).await,
            Operation::Restore => {
                self.attach(&subject.volume).await;
                let reads: Vec<String> =
                    (0..self.blocks).map(|n| format!("read -P {} {}k 512k", n + 1, n * 512)).collect();
                io(&self.cloud, &subject.volume, &reads).await;
                eventually("all is fetched", || async {
                    let folder = self.cloud.state_of(Tier::Storage(0)).join("volumes").join(&subject.volume);
                    (!folder.join("source.json").exists()).then_some(())
                })
                .await;
            }
            Operation::Detach => self.detach(&subject.volume, "").await,
            Operation::ForceDetach => self.detach(&subject.volume, "&Force=true").await,
            Operation::Snapshot => {
                subject.snapshot = self.made_once(&self.create_snapshot(&token), &token).await;
                self.snapshot_is(&subject.snapshot, "completed").await;
            }
            Operation::Copy => {
                let ask = format!(
                    "Action=CopySnapshot&SourceRegion=mallee-1&SourceSnapshotId={}&Description={token}",
                    self.snapshot
                );
                subject.snapshot = self.made_once(&ask, &token).await;
                self.snapshot_is(&subject.snapshot, "completed").await;
            }
            Operation::Import => {
                let ask = format!(
                    "Action=ImportSnapshot&ClientToken={token}&DiskContainer.Format=raw\
                     &DiskContainer.UserBucket.S3Bucket=disks&DiskContainer.UserBucket.S3Key=disk"
                );
                let task = self.ask(&ask).await.value("importTaskId");
                subject.snapshot = eventually(&format!("{task} is completed"), || async {
                    let ask = format!("Action=DescribeImportSnapshotTasks&ImportTaskId.1={task}");
                    let answer = self.try_ask(&ask).await.filter(|a| a.status == 200)?;
                    let status = answer.value("status");
                    assert_ne!(status, "deleted", "{}", answer.text());
                    (status == "completed").then(|| answer.value("snapshotId"))
                })
                .await;
            }
            Operation::Grow => {
                let ask = format!("Action=ModifyVolume&VolumeId={}&Size=2", subject.volume);
                let asked = format!("Action=DescribeVolumesModifications&VolumeId.1={}", subject.volume);
                let size = |answer: &Answer| answer.get("targetSize");
                eventually("it is to grow", || async {
                    if self.try_ask(&ask).await.is_some_and(|answer| answer.status == 200) {
                        return Some(());
                    }
                    // An answer may have been lost.
                    self.try_ask(&asked).await.filter(|a| size(a).as_deref() == Some("2")).map(drop)
                })
                .await;
                eventually("it has grown", || async {
                    let answer = self.try_ask(&asked).await?;
                    (answer.get("modificationState").as_deref() == Some("completed")).then_some(())
                })
                .await;
                let commands = ["read -P 9 1M 64k", "write -f -P 8 1900M 64k", "read -P 8 1900M 64k"];
                io(&self.cloud, &subject.volume, &commands.map(Into::into)).await;
            }
            Operation::Delete => self.delete(&subject.volume).await,
            Operation::DeleteSnapshot => {
                let ask = format!("Action=DeleteSnapshot&SnapshotId={}", subject.snapshot);
                self.ask_unless(&ask, &["InvalidSnapshot.NotFound"]).await;
                self.is_gone(&format!("Action=DescribeSnapshots&SnapshotId.1={}", subject.snapshot)).await;
            }
        }
    }

    /// Whether what it made is what it should be; and takes it away again.
    pub async fn check_and_tidy(&self, operation: Operation, subject: &Subject) {
        let read_through = async |volume: &str, commands: Vec<String>| {
            self.attach(volume).await;
            io(&self.cloud, volume, &commands).await;
        };
        match operation {
            Operation::Create | Operation::Attach => {
                let commands = vec!["write -f -P 7 0 64k".into(), "read -P 7 0 64k".into()];
                read_through(&subject.volume, commands).await;
            }
            Operation::CreateFromSnapshot => {
                read_through(
                    &subject.volume,
                    vec![format!("read -P {} {}k 512k", self.blocks, (self.blocks - 1) * 512)],
                )
                .await;
            }
            Operation::Detach | Operation::ForceDetach => {
                read_through(&subject.volume, vec!["read -P 9 1M 64k".into()]).await
            }
            Operation::Snapshot => {
                let after = self.writer.count();
                let volume = self.new_volume(&format!("SnapshotId={}", subject.snapshot)).await;
                self.attach(&volume).await;
                let there = whole_slots(&self.cloud, &volume).await;
                assert!((subject.written..=after + 1).contains(&there), "{} ≤ {there} ≤ {after}", subject.written);
                self.detach(&volume, "").await;
                self.delete(&volume).await;
            }
            Operation::Copy | Operation::Import => {
                let volume = self.new_volume(&format!("SnapshotId={}", subject.snapshot)).await;
                read_through(&volume, vec!["read -P 1 0 512k".into()]).await;
                self.detach(&volume, "").await;
                self.delete(&volume).await;
            }
            Operation::Restore | Operation::Grow | Operation::DeleteSnapshot | Operation::Delete => {}
        }
        if !subject.volume.is_empty() && operation != Operation::Delete {
            self.detach(&subject.volume, "").await;
            self.delete(&subject.volume).await;
        }
        if !subject.snapshot.is_empty() && operation != Operation::DeleteSnapshot {
            self.ask(&format!("Action=DeleteSnapshot&SnapshotId={}", subject.snapshot)).await;
        }
    }

    /// The answer, when there is one.
    pub async fn try_ask(&self, form: &str) -> Option<Answer> {
        let asked = self.user.try_query("ec2", form, Signed::Properly).await;
        asked.ok().filter(|answer| answer.status < 500)
    }

    pub async fn ask(&self, form: &str) -> Answer {
        eventually(form, || async { self.try_ask(form).await.filter(|answer| answer.status == 200) }).await
    }

    /// Asks until it is heard; these codes say that it was heard before.
    async fn ask_unless(&self, form: &str, heard: &[&str]) {
        eventually(form, || async {
            let answer = self.try_ask(form).await?;
            assert!(answer.status == 200 || heard.contains(&answer.code().as_str()), "{form}: {}", answer.text());
            Some(())
        })
        .await;
    }

    /// A snapshot of this description: asked for, and not twice.
    async fn made_once(&self, ask: &str, description: &str) -> String {
        let find = format!("Action=DescribeSnapshots&Filter.1.Name=description&Filter.1.Value.1={description}");
        eventually(ask, || async {
            let found = self.try_ask(&find).await.filter(|a| a.status == 200)?.values("snapshotId");
            assert!(found.len() < 2, "{found:?} were made of one request");
            match found.into_iter().next() {
                Some(id) => Some(id),
                None => self.try_ask(ask).await.filter(|a| a.status == 200).map(|a| a.value("snapshotId")),
            }
        })
        .await
    }

    fn create_snapshot(&self, description: &str) -> String {
        format!("Action=CreateSnapshot&VolumeId={}&Description={description}", self.steady)
    }

    async fn new_volume(&self, with: &str) -> String {
        let ask = format!("Action=CreateVolume&AvailabilityZone=mallee-1a&{with}");
        let id = self.cloud.ec2(&ask).await.value("volumeId");
        self.volume_is(&id, "available").await;
        id
    }

    pub async fn volume_is(&self, volume: &str, state: &str) {
        eventually(&format!("{volume} is {state}"), || async {
            let answer = self.try_ask(&format!("Action=DescribeVolumes&VolumeId.1={volume}")).await?;
            (answer.status == 200 && answer.xml().first("status")?.text() == state).then_some(())
        })
        .await;
    }

    pub async fn attachment_is(&self, volume: &str, state: &str) {
        eventually(&format!("the attachment of {volume} is {state}"), || async {
            let answer = self.try_ask(&format!("Action=DescribeVolumes&VolumeId.1={volume}")).await?;
            let all: Vec<String> = answer
                .xml()
                .walk()
                .into_iter()
                .filter(|e| e.name == "attachmentSet")
                .map(|e| e.first("status").map(|s| s.text()).unwrap_or_default())
                .collect();
            (all == [state]).then_some(())
        })
        .await;
    }

    pub async fn attach(&self, volume: &str) {
        if self.attached(volume).await {
            return;
        }
        let device = format!("/dev/sd{}", if volume == self.steady { 'f' } else { 'g' });
        let ask = format!("Action=AttachVolume&VolumeId={volume}&InstanceId={}&Device={device}", self.instance);
        self.ask_unless(&ask, &["VolumeInUse"]).await;
        self.attachment_is(volume, "attached").await;
        self.volume_is(volume, "in-use").await;
        export_of(&self.cloud, volume).await;
    }

    async fn attached(&self, volume: &str) -> bool {
        let answer = self.ask(&format!("Action=DescribeVolumes&VolumeId.1={volume}")).await;
        answer.values("status").contains(&"attached".to_owned())
    }

    async fn detach(&self, volume: &str, how: &str) {
        // One that is detached already is in no state for it.
        self.ask_unless(&format!("Action=DetachVolume&VolumeId={volume}{how}"), &["IncorrectState"]).await;
        self.volume_is(volume, "available").await;
    }

    async fn delete(&self, volume: &str) {
        self.ask_unless(&format!("Action=DeleteVolume&VolumeId={volume}"), &["InvalidVolume.NotFound"]).await;
        eventually(&format!("nothing of {volume} is left"), || async {
            let folder = self.cloud.state_of(Tier::Storage(0)).join("volumes").join(volume);
            (!folder.exists()).then_some(())
        })
        .await;
    }

    async fn is_gone(&self, describe: &str) {
        eventually(&format!("{describe} finds nothing"), || async {
            self.try_ask(describe).await.filter(|answer| answer.code().ends_with(".NotFound")).map(drop)
        })
        .await;
    }

    pub async fn snapshot_is(&self, snapshot: &str, state: &str) {
        eventually(&format!("{snapshot} is {state}"), || async {
            let answer = self.try_ask(&format!("Action=DescribeSnapshots&SnapshotId.1={snapshot}")).await?;
            (answer.get("status").as_deref() == Some(state)).then_some(())
        })
        .await;
    }

    /// What imports and copies begin with: block n, of the first few, holds bytes of n + 1.
    pub async fn fill(&self, blocks: u64) -> String {
        let volume = self.new_volume("Size=1").await;
        self.attach(&volume).await;
        let writes: Vec<String> = (0..blocks).map(|n| format!("write -P {} {}k 512k", n + 1, n * 512)).collect();
        io(&self.cloud, &volume, &writes).await;
        let snapshot = self.cloud.ec2(&format!("Action=CreateSnapshot&VolumeId={volume}")).await.value("snapshotId");
        self.snapshot_is(&snapshot, "completed").await;
        self.detach(&volume, "").await;
        self.delete(&volume).await;
        self.user.s3(Method::PUT, "/disks", "").await.ok();
        self.user.s3(Method::PUT, "/disks/disk", vec![1u8; 1 << 20]).await.ok();
        snapshot
    }
}
