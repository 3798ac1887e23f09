//! `mallee why ID`: what was asked, decided and observed, from this tier's rows and log, and from the zone's.

use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{TierError, WhyAnswer, WhyAsked, WhyLine};

use super::event;
use crate::{
    Cloud,
    ec2::{image, instance, snapshot, volume},
};

/// Which zone goes on telling.
enum Below {
    Nobody,
    Cluster(String),
    Storage(String),
}

/// The story of an id, from the top tier to the bottom one.
pub async fn why(cloud: &Cloud, id: &str) -> Result<WhyAnswer, TierError> {
    let wanted = id.to_owned();
    let told = cloud
        .store
        .read("tell why", move |tx| tell(tx, &wanted))
        .await
        .map_err(|e: StoreError| TierError::internal(e.to_string()))?;
    let (mut lines, below) =
        told.ok_or_else(|| TierError::not_found(format!("no instance, volume or image {id} is known here")))?;
    let asked = WhyAsked { id: id.to_owned() };
    let (by, answer) = match below {
        Below::Nobody => return Ok(WhyAnswer { lines }),
        Below::Cluster(zone) => {
            let answer = match cloud.tiers.cluster(&cloud.store, &zone).await {
                Ok(client) => client.why(&asked).await,
                Err(e) => Err(e),
            };
            (zone, answer)
        }
        Below::Storage(zone) => {
            let answer = match cloud.tiers.storage(&cloud.store, &zone).await {
                Ok(client) => client.why(&asked).await,
                Err(e) => Err(e),
            };
            (zone, answer)
        }
    };
    match answer {
        Ok(answer) => lines.extend(answer.lines),
        Err(e) => lines.push(WhyLine {
            by,
            kind: "observed".into(),
            at: cloud.now(),
            text: format!("cannot be asked: {}", e.message),
        }),
    }
    Ok(WhyAnswer { lines })
}

fn line(kind: &str, at: i64, text: String) -> WhyLine {
    WhyLine { by: "cloud-controller".into(), kind: kind.into(), at, text }
}

fn tell(tx: &mut Tx<'_>, id: &str) -> Result<Option<(Vec<WhyLine>, Below)>, StoreError> {
    let found = match id.split_once('-').map(|(prefix, _)| prefix) {
        Some("i") => instance::any(tx, id)?.map(|i| (of_instance(&i), Below::Cluster(i.zone))),
        Some("vol") => {
            let attachment = volume::attachment_of(tx, id)?;
            volume::any(tx, id)?.map(|v| (of_volume(&v, attachment.as_ref()), Below::Storage(v.zone)))
        }
        Some("snap") => snapshot::any(tx, id)?.map(|s| {
            let below = if s.zone.is_empty() { Below::Nobody } else { Below::Storage(s.zone.clone()) };
            (of_snapshot(&s), below)
        }),
        Some("ami" | "aki" | "ari") => image::any(tx, id)?.map(|i| (of_image(&i), Below::Nobody)),
        _ => None,
    };
    let Some((mut lines, below)) = found else { return Ok(None) };
    lines.extend(event::of(tx, id)?);
    Ok(Some((lines, below)))
}

fn of_instance(i: &instance::Instance) -> Vec<WhyLine> {
    let mut lines = vec![
        line("asked", i.launched, format!("{} of {} for account {}", i.instance_type, i.image, i.account)),
        line(
            "decided",
            i.asked_at,
            format!(
                "wanted {} ({}), generation {}/{}",
                instance::word(i.desired),
                instance::word(i.cause),
                i.generation.epoch,
                i.generation.counter
            ),
        ),
    ];
    let observed = match i.observed {
        None => format!("nothing was heard of it from zone {} yet", i.zone),
        Some(observed) => {
            let mut text = format!(
                "{} (generation {}/{})",
                instance::word(observed),
                i.observed_generation.epoch,
                i.observed_generation.counter
            );
            if let Some(node) = &i.node {
                text.push_str(&format!(" on {node}"));
            }
            if !i.step.is_empty() {
                text.push_str(&format!(", at {}", i.step));
            }
            if !i.reason.is_empty() {
                text.push_str(&format!(": {}", i.reason));
            }
            if !i.took.is_empty() {
                text.push_str(&format!("; it took {} ms", i.took));
            }
            text
        }
    };
    lines.push(line("observed", i.asked_at, format!("{observed}; shown as {}", i.state().name)));
    lines
}

fn of_volume(v: &volume::Volume, attachment: Option<&volume::Attachment>) -> Vec<WhyLine> {
    let mut lines = vec![
        line("asked", v.created, format!("{} GiB of {} in {} for account {}", v.size_gib, v.kind, v.zone, v.account)),
        line(
            "decided",
            v.created,
            format!("wanted {}, generation {}/{}", instance::word(v.desired), v.generation.epoch, v.generation.counter),
        ),
    ];
    if let Some(a) = attachment {
        let waits = if a.reason.is_empty() { String::new() } else { format!(": {}", a.reason) };
        lines.push(line("decided", a.since, format!("{} at {} as {}{waits}", a.phase.shown(), a.instance, a.device)));
    }
    let observed = v.observed.map_or_else(|| "nothing was heard of it yet".to_owned(), instance::word);
    let reason = if v.reason.is_empty() { String::new() } else { format!(": {}", v.reason) };
    let served = v.export.as_ref().map(|e| format!("; served for attachment {}", e.attachment)).unwrap_or_default();
    lines.push(line("observed", v.created, format!("{observed}{reason}{served}")));
    lines
}

fn of_snapshot(s: &snapshot::Snapshot) -> Vec<WhyLine> {
    let observed = s.observed.map_or_else(|| "nothing was heard of it yet".to_owned(), instance::word);
    let reason = if s.reason.is_empty() { String::new() } else { format!(": {}", s.reason) };
    let kept = if s.accepted { ", all of it is in walrus" } else { "" };
    vec![
        line("asked", s.created, format!("a snapshot of {}, {} GiB, for account {}", s.volume, s.size_gib, s.account)),
        line("decided", s.created, format!("wanted {}, attempt {}", instance::word(s.desired), s.attempt)),
        line("observed", s.created, format!("{observed}, {} %, {} KiB sent{kept}{reason}", s.percent, s.sent >> 10)),
    ]
}

fn of_image(i: &image::Image) -> Vec<WhyLine> {
    let reason = if i.reason.is_empty() { String::new() } else { format!(": {}", i.reason) };
    vec![
        line(
            "asked",
            i.created,
            format!("{} image {:?} from {} for account {}", instance::word(i.kind), i.name, i.location, i.account),
        ),
        line(
            "observed",
            i.created,
            format!("{}, {} %, signature {}{reason}", instance::word(i.state), i.progress, instance::word(i.proof)),
        ),
    ]
}
