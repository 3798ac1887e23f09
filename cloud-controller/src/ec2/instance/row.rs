//! An instance's row: what was asked, what is wanted, what was observed. Its SQL is here and nowhere else.

use std::collections::BTreeMap;

use mallee_aws::id::{InstanceId, ReservationId};
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::{Desired, Generation, HoldKind, Observed};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    ec2::{Id, instance_type::InstanceType},
    zone::generation::{self, List},
};

pub const TABLES: &str = "
CREATE TABLE instance (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    reservation TEXT NOT NULL,
    launch_index BIGINT NOT NULL,
    client_token TEXT,
    zone TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    counter BIGINT NOT NULL,
    image TEXT NOT NULL,
    kernel TEXT,
    ramdisk TEXT,
    architecture TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    key_name TEXT,
    subnet TEXT NOT NULL,
    vpc TEXT NOT NULL,
    launched BIGINT NOT NULL,
    options TEXT NOT NULL,
    desired TEXT NOT NULL,
    asked_at BIGINT NOT NULL,
    cause TEXT NOT NULL,
    forced BIGINT NOT NULL,
    reboots BIGINT NOT NULL,
    starts BIGINT NOT NULL,
    observed TEXT,
    observed_epoch BIGINT NOT NULL,
    observed_counter BIGINT NOT NULL,
    node TEXT,
    step TEXT NOT NULL,
    reason TEXT NOT NULL,
    reboots_done BIGINT NOT NULL,
    started BIGINT,
    took TEXT NOT NULL,
    gone BIGINT
);
CREATE INDEX instance_of ON instance (account, id);
CREATE INDEX instance_in ON instance (zone, id);
CREATE INDEX instance_reserved ON instance (reservation);
CREATE INDEX instance_from ON instance (image);
CREATE INDEX instance_gone ON instance (gone);
CREATE TABLE instance_user_data (instance TEXT PRIMARY KEY, base64 TEXT NOT NULL);
CREATE TABLE instance_console (instance TEXT PRIMARY KEY, base64 TEXT NOT NULL, at BIGINT NOT NULL);
";

/// Why an instance is wanted as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Somebody asked for it through the API.
    User,
    /// The guest powered itself off.
    Guest,
    /// It could not be brought up.
    Failure,
}

/// What becomes of an instance whose guest powers off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownBehavior {
    Stop,
    Terminate,
}

/// How the guest may read its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    pub enabled: bool,
    pub tokens_required: bool,
    pub hop_limit: u8,
    pub tags: bool,
}

/// What the user chose and no rule looks for by SQL: one column, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// As it was at the launch: a key pair deleted since does not lock anybody out.
    pub public_key: Option<String>,
    /// `/dev/sda1`: as the image had it.
    pub root_device: String,
    pub shutdown: ShutdownBehavior,
    pub protect_termination: bool,
    pub protect_stop: bool,
    pub ebs_optimized: bool,
    pub metadata: MetadataOptions,
    /// Its root is a volume: whichever is attached as `root_device`.
    #[serde(default)]
    pub root_on_volume: bool,
    /// The device of its instance store, where it has one beside a root on a volume.
    #[serde(default)]
    pub ephemeral: Option<String>,
    /// Its guest stands still, or did until just now, while its volumes are fixed.
    #[serde(default)]
    pub hold: Option<Hold>,
}

/// Why a guest stands still: see [`crate::ec2::image::create`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub id: String,
    pub kind: HoldKind,
    /// The last report said that the guest stands still under it.
    #[serde(default)]
    pub confirmed: bool,
    /// It is over, and the guest has not been seen running since.
    pub over: bool,
}

/// An instance as its row is.
#[derive(Debug, Clone)]
pub struct Instance {
    pub id: InstanceId,
    pub account: String,
    pub reservation: ReservationId,
    pub launch_index: i64,
    pub client_token: Option<String>,
    pub zone: String,
    pub generation: Generation,
    pub image: String,
    pub kernel: Option<String>,
    pub ramdisk: Option<String>,
    pub architecture: String,
    pub instance_type: String,
    pub key_name: Option<String>,
    pub subnet: String,
    pub vpc: String,
    pub launched: i64,
    pub options: Options,
    pub desired: Desired,
    /// When `desired` was last written, and why.
    pub asked_at: i64,
    pub cause: Cause,
    /// Stop without asking the guest.
    pub forced: bool,
    pub reboots: u32,
    /// How often it was started again; 0 is the launch itself.
    pub starts: u32,
    /// None: nothing was heard of it yet.
    pub observed: Option<Observed>,
    pub observed_generation: Generation,
    pub node: Option<String>,
    pub step: String,
    pub reason: String,
    pub reboots_done: u32,
    /// Since when it has been seen running, after its launch or its last start.
    pub started: Option<i64>,
    /// JSON: step → milliseconds.
    pub took: String,
    /// When nothing was left of it.
    pub gone: Option<i64>,
}

impl Instance {
    pub fn instance_type(&self) -> Option<&'static InstanceType> {
        InstanceType::named(&self.instance_type)
    }

    pub fn root_device_type(&self) -> &'static str {
        if self.options.root_on_volume { "ebs" } else { "instance-store" }
    }

    /// Its row is only shown any more: nothing of it is or will be.
    pub fn is_ended(&self) -> bool {
        self.gone.is_some()
    }
}

/// An enum of ours as a text column, by its serde name; a name of a later release becomes `Unknown` where there is one.
pub fn word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

pub fn unword<T: DeserializeOwned>(word: String) -> Result<T, StoreError> {
    serde_json::from_value(serde_json::Value::String(word)).map_err(|e| unreadable(&e))
}

fn unreadable(e: &dyn std::fmt::Display) -> StoreError {
    StoreError::Other { what: "read an instance", detail: format!("a column is not readable: {e}") }
}

const COLUMNS: &str = "id, account, reservation, launch_index, client_token, zone, epoch, counter, image, kernel, ramdisk, \
     architecture, instance_type, key_name, subnet, vpc, launched, options, desired, asked_at, cause, forced, reboots, \
     observed, observed_epoch, observed_counter, node, step, reason, reboots_done, started, took, gone, starts";

fn read(row: &Row<'_>) -> Result<Instance, StoreError> {
    let observed: Option<String> = row.get(23)?;
    Ok(Instance {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        reservation: row.get::<Id<_>>(2)?.0,
        launch_index: row.get(3)?,
        client_token: row.get(4)?,
        zone: row.get(5)?,
        generation: Generation { epoch: row.get(6)?, counter: row.get(7)? },
        image: row.get(8)?,
        kernel: row.get(9)?,
        ramdisk: row.get(10)?,
        architecture: row.get(11)?,
        instance_type: row.get(12)?,
        key_name: row.get(13)?,
        subnet: row.get(14)?,
        vpc: row.get(15)?,
        launched: row.get(16)?,
        options: serde_json::from_str(&row.get::<String>(17)?).map_err(|e| unreadable(&e))?,
        desired: unword(row.get(18)?)?,
        asked_at: row.get(19)?,
        cause: unword(row.get(20)?)?,
        forced: row.get(21)?,
        reboots: row.get(22)?,
        observed: observed.map(unword).transpose()?,
        observed_generation: Generation { epoch: row.get(24)?, counter: row.get(25)? },
        node: row.get(26)?,
        step: row.get(27)?,
        reason: row.get(28)?,
        reboots_done: row.get(29)?,
        started: row.get(30)?,
        took: row.get(31)?,
        gone: row.get(32)?,
        starts: row.get(33)?,
    })
}

pub fn insert(tx: &mut Tx<'_>, i: &Instance) -> Result<(), StoreError> {
    let options = serde_json::to_string(&i.options).map_err(|e| unreadable(&e))?;
    tx.execute(
        "INSERT INTO instance (id, account, reservation, launch_index, client_token, zone, epoch, counter, image, kernel,
             ramdisk, architecture, instance_type, key_name, subnet, vpc, launched, options, desired, asked_at, cause, forced,
             reboots, observed, observed_epoch, observed_counter, node, step, reason, reboots_done, started, took, gone, starts)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?17, ?20, 0, 0,
             NULL, 0, 0, NULL, '', '', 0, NULL, '', NULL, 0)",
        params![
            i.id.as_str(),
            i.account,
            i.reservation.as_str(),
            i.launch_index,
            i.client_token,
            i.zone,
            i.generation.epoch,
            i.generation.counter,
            i.image,
            i.kernel,
            i.ramdisk,
            i.architecture,
            i.instance_type,
            i.key_name,
            i.subnet,
            i.vpc,
            i.launched,
            options,
            word(i.desired),
            word(i.cause),
        ],
    )
    .map(|_| ())
}

/// All instances of an account, by id.
pub fn of_account(tx: &mut Tx<'_>, account: &str) -> Result<Vec<Instance>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM instance WHERE account = ?1 ORDER BY id"), params![account], read)
}

/// All instances of a zone that the tier below may have something of.
pub fn wanted_in(tx: &mut Tx<'_>, zone: &str) -> Result<Vec<Instance>, StoreError> {
    tx.query(
        &format!("SELECT {COLUMNS} FROM instance WHERE zone = ?1 AND gone IS NULL ORDER BY id"),
        params![zone],
        read,
    )
}

/// One instance of an account.
pub fn get(tx: &mut Tx<'_>, account: &str, id: &str) -> Result<Option<Instance>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM instance WHERE account = ?1 AND id = ?2"), params![account, id], read)
}

/// One instance, whosever it is: for what the cloud does by itself.
pub fn any(tx: &mut Tx<'_>, id: &str) -> Result<Option<Instance>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM instance WHERE id = ?1"), params![id], read)
}

/// The instances of one launch.
pub fn of_reservation(tx: &mut Tx<'_>, account: &str, reservation: &str) -> Result<Vec<InstanceId>, StoreError> {
    tx.query(
        "SELECT id FROM instance WHERE account = ?1 AND reservation = ?2 ORDER BY launch_index",
        params![account, reservation],
        |row| Ok(row.get::<Id<InstanceId>>(0)?.0),
    )
}

/// How many instances count against an account's limit.
pub fn count(tx: &mut Tx<'_>, account: &str) -> Result<u64, StoreError> {
    tx.query_one(
        "SELECT COUNT(*) FROM instance WHERE account = ?1 AND desired <> 'terminated'",
        params![account],
        |row| row.get(0),
    )
}

/// What the tier below is sent of this instance has changed: gives the row the next generation of its zone's list.
/// Every change of anything in its body must end in this call, or it is never sent.
pub fn touch(tx: &mut Tx<'_>, instance: &str) -> Result<(), StoreError> {
    let zone: Option<String> =
        tx.query_opt("SELECT zone FROM instance WHERE id = ?1", params![instance], |row| row.get(0))?;
    let Some(zone) = zone else { return Ok(()) };
    let generation = generation::next(tx, &zone, List::Instances)?;
    tx.execute(
        "UPDATE instance SET epoch = ?2, counter = ?3 WHERE id = ?1",
        params![instance, generation.epoch, generation.counter],
    )
    .map(|_| ())
}

/// Wants it so from now on, and says since when and why.
pub fn want(
    tx: &mut Tx<'_>,
    instance: &Instance,
    desired: Desired,
    cause: Cause,
    forced: bool,
    now: i64,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE instance SET desired = ?2, cause = ?3, forced = ?4, asked_at = ?5 WHERE id = ?1",
        params![instance.id.as_str(), word(desired), word(cause), forced, now],
    )?;
    touch(tx, instance.id.as_str())
}

/// It cannot be what it was asked to be; why.
pub fn set_reason(tx: &mut Tx<'_>, instance: &str, reason: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE instance SET reason = ?2 WHERE id = ?1", params![instance, reason]).map(|_| ())
}

/// One more reboot is asked for.
pub fn reboot(tx: &mut Tx<'_>, instance: &Instance) -> Result<(), StoreError> {
    tx.execute("UPDATE instance SET reboots = reboots + 1 WHERE id = ?1", params![instance.id.as_str()])?;
    touch(tx, instance.id.as_str())
}

/// Wants a stopped one running again. What was seen of its last life says nothing about this one.
pub fn start(tx: &mut Tx<'_>, instance: &Instance, now: i64) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE instance SET launched = ?2, starts = starts + 1, started = NULL, reason = '' WHERE id = ?1",
        params![instance.id.as_str(), now],
    )?;
    want(tx, instance, Desired::Running, Cause::User, false, now)
}

/// The nodes that the instances of a zone were seen on last.
pub fn nodes_in(tx: &mut Tx<'_>, zone: &str) -> Result<BTreeMap<String, String>, StoreError> {
    let sql = "SELECT id, node FROM instance WHERE zone = ?1 AND gone IS NULL AND node IS NOT NULL";
    let all = tx.query(sql, params![zone], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(all.into_iter().collect())
}

/// It is off and on no node: it may be started on any.
pub fn leave_node(tx: &mut Tx<'_>, instance: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE instance SET node = NULL WHERE id = ?1", params![instance]).map(|_| ())
}

/// Most options concern this tier only; the caller touches the instance for those that the node acts on, because a newer
/// wish would also bring a guest up again that has just powered itself off.
pub fn set_options(tx: &mut Tx<'_>, instance: &str, options: &Options) -> Result<(), StoreError> {
    let options = serde_json::to_string(options).map_err(|e| unreadable(&e))?;
    tx.execute("UPDATE instance SET options = ?2 WHERE id = ?1", params![instance, options]).map(|_| ())
}

pub fn set_type(tx: &mut Tx<'_>, instance: &str, name: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE instance SET instance_type = ?2 WHERE id = ?1", params![instance, name])?;
    touch(tx, instance)
}

/// Base64, as the user sent it.
pub fn user_data(tx: &mut Tx<'_>, instance: &str) -> Result<Option<String>, StoreError> {
    tx.query_opt("SELECT base64 FROM instance_user_data WHERE instance = ?1", params![instance], |row| row.get(0))
}

/// (instance, base64) of every instance of a zone that the tier below may have something of.
pub fn user_data_in(tx: &mut Tx<'_>, zone: &str) -> Result<Vec<(String, String)>, StoreError> {
    tx.query(
        "SELECT u.instance, u.base64 FROM instance_user_data u JOIN instance i ON i.id = u.instance
         WHERE i.zone = ?1 AND i.gone IS NULL",
        params![zone],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Writes it without a touch: for a launch, whose row is new anyway.
pub fn put_user_data(tx: &mut Tx<'_>, instance: &str, base64: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO instance_user_data (instance, base64) VALUES (?1, ?2) ON CONFLICT (instance) DO UPDATE SET base64 = ?2",
        params![instance, base64],
    )
    .map(|_| ())
}

/// The last console output that was kept: base64 and when.
pub fn console(tx: &mut Tx<'_>, instance: &str) -> Result<Option<(String, i64)>, StoreError> {
    tx.query_opt("SELECT base64, at FROM instance_console WHERE instance = ?1", params![instance], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

pub fn put_console(tx: &mut Tx<'_>, instance: &str, base64: &str, at: i64) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO instance_console (instance, base64, at) VALUES (?1, ?2, ?3)
         ON CONFLICT (instance) DO UPDATE SET base64 = ?2, at = ?3",
        params![instance, base64, at],
    )
    .map(|_| ())
}

/// What was observed, as the newest report has it.
pub fn set_observed(
    tx: &mut Tx<'_>,
    report: &mallee_tiers::InstanceReport,
    gone: Option<i64>,
) -> Result<(), StoreError> {
    let started = report.started.filter(|_| report.observed == Observed::Running);
    let took = if report.took_ms.is_empty() {
        String::new()
    } else {
        serde_json::to_string(&report.took_ms).unwrap_or_default()
    };
    tx.execute(
        "UPDATE instance SET observed = ?2, observed_epoch = ?3, observed_counter = ?4, node = COALESCE(?5, node), step = ?6,
             reason = CASE WHEN cause = 'failure' AND desired = 'terminated' AND ?7 = '' THEN reason ELSE ?7 END, reboots_done = ?8, started = COALESCE(?9, started), took = CASE WHEN ?10 = '' THEN took ELSE ?10 END,
             gone = COALESCE(gone, ?11)
         WHERE id = ?1",
        params![
            report.id,
            word(report.observed),
            report.generation.epoch,
            report.generation.counter,
            report.node,
            report.step,
            report.reason,
            report.reboots_done,
            started,
            took,
            gone,
        ],
    )
    .map(|_| ())
}

/// Ids of instances that ended before `before`, a bounded number of them.
pub fn ended_before(tx: &mut Tx<'_>, before: i64) -> Result<Vec<String>, StoreError> {
    tx.query(
        "SELECT id FROM instance WHERE gone IS NOT NULL AND gone < ?1 ORDER BY gone LIMIT 200",
        params![before],
        |row| row.get(0),
    )
}

/// Nothing is left to be shown of it. Rows of other files that hang on it go in their own functions.
pub fn remove(tx: &mut Tx<'_>, instance: &str) -> Result<(), StoreError> {
    for table in ["instance", "instance_user_data", "instance_console"] {
        let key = if table == "instance" { "id" } else { "instance" };
        tx.execute(&format!("DELETE FROM {table} WHERE {key} = ?1"), params![instance])?;
    }
    Ok(())
}

/// Whether any instance that is not ended boots from this image.
pub fn boots_from(tx: &mut Tx<'_>, image: &str) -> Result<bool, StoreError> {
    let found = tx.query(
        "SELECT 1 FROM instance WHERE gone IS NULL AND (image = ?1 OR kernel = ?1 OR ramdisk = ?1) LIMIT 1",
        params![image],
        |row| row.get::<i64>(0),
    )?;
    Ok(!found.is_empty())
}

/// Desired, observed, whether it has run.
pub type Condition = (Desired, Option<Observed>, bool);

/// How many instances are in each condition.
pub fn by_condition(tx: &mut Tx<'_>) -> Result<Vec<(Condition, u64)>, StoreError> {
    tx.query(
        "SELECT desired, observed, CASE WHEN started IS NULL THEN 0 ELSE 1 END, COUNT(*) FROM instance
         GROUP BY desired, observed, CASE WHEN started IS NULL THEN 0 ELSE 1 END",
        params![],
        |row| {
            let observed: Option<String> = row.get(1)?;
            Ok(((unword(row.get(0)?)?, observed.map(unword).transpose()?, row.get(2)?), row.get(3)?))
        },
    )
}

/// (id, generation) of a zone's list, by id.
pub fn listed_in(tx: &mut Tx<'_>, zone: &str) -> Result<Vec<(String, Generation)>, StoreError> {
    tx.query(
        "SELECT id, epoch, counter FROM instance WHERE zone = ?1 AND gone IS NULL ORDER BY id",
        params![zone],
        |row| Ok((row.get(0)?, Generation { epoch: row.get(1)?, counter: row.get(2)? })),
    )
}

pub fn drop_user_data(tx: &mut Tx<'_>, instance: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM instance_user_data WHERE instance = ?1", params![instance]).map(|_| ())
}
