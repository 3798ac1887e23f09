//! Brings layers that need not be apart any more into the bottom one.
//!
//! Which layers is decided by the rows ([`upper`]) and written down first. The rest may be interrupted anywhere: a layer is
//! part of the volume until the header of the one above it names another, and what it holds hides what is below.

use std::sync::Arc;

use serde_json::json;

use super::row::{OfVolume, State};
use crate::{
    Storage,
    backend::{Number, node_name},
    export::MERGE_JOB,
    volume::{State as VolumeState, Trouble, VolumeId},
};

/// The highest layer that can go into the bottom one, of a volume whose layers these are (the highest, which is written to,
/// first).
///
/// What changed since the newest snapshot must stay apart, or the next one would have to look at everything; and so must
/// the layers of one that is not safe in walrus yet.
fn upper(of: &OfVolume, layers: &[Number]) -> Option<Number> {
    let pending = of.snapshots.iter().filter(|(_, r)| r.pending()).map(|(_, r)| r.layer).min();
    let newest = of
        .snapshots
        .iter()
        .filter(|(_, r)| r.state == State::Uploaded && r.accepted && r.manifest.is_some())
        .map(|(_, r)| r.layer)
        .max();
    let below_top = layers.iter().skip(1).copied();
    below_top
        .filter(|layer| *layer > 0)
        .filter(|layer| pending.is_none_or(|pending| *layer < pending))
        .filter(|layer| match (newest, pending) {
            (Some(newest), _) => *layer <= newest,
            // Nothing to count from: the one that is pending looks at everything anyway.
            (None, _) => true,
        })
        .max()
}

impl Storage {
    /// Begins a merge, if there is something to merge and none is under way.
    pub(super) async fn begin_merge(self: &Arc<Self>, id: &VolumeId) -> Result<(), Trouble> {
        let (volume, export) = self.rows(id.as_str()).await?;
        if volume.is_none_or(|v| v.state != VolumeState::Ready) {
            return Ok(());
        }
        let of = self.snapshots_of(id).await?;
        let asked = id.clone();
        let looked = self.backend(move |b| {
            // Nothing goes into a bottom layer that is still being fetched; and nobody but a daemon, which knows the key,
            // can bring together what is encrypted.
            let busy = b.beginning(&asked)?.is_some() || (export.is_none() && b.is_encrypted(&asked)?);
            Ok((!busy).then_some((b.numbers(&asked)?, b.has_merged(&asked)?)))
        });
        let Ok(Some((layers, has_merged))) = looked.await else { return Ok(()) };
        let upper = upper(&of, &layers);
        if upper.is_none() && !has_merged {
            return Ok(());
        }
        let (storage, id) = (self.clone(), id.clone());
        self.background.begin(&format!("merge {id}"), async move { storage.merge(&id, upper).await });
        Ok(())
    }

    /// None: nothing is left to merge, but the files of layers that were.
    async fn merge(&self, id: &VolumeId, upper: Option<Number>) -> Result<(), Trouble> {
        let lock = self.lock_of(id);
        let _alone = lock.lock().await;
        let (volume, export) = self.rows(id.as_str()).await?;
        if volume.is_none_or(|v| v.state != VolumeState::Ready) {
            return Ok(());
        }
        if let Some(upper) = upper {
            self.set_merged(id, upper).await?;
        }
        match (export, upper) {
            (Some(_), upper) => self.merge_served(id, upper).await?,
            (None, Some(_)) if self.is_encrypted(id).await? => return Ok(()),
            (None, Some(upper)) => {
                let merged = id.clone();
                self.backend(move |b| b.merge(&merged, upper)).await?;
            }
            (None, None) => {}
        }
        let merged = id.clone();
        self.backend(move |b| b.remove_merged(&merged)).await?;
        tracing::info!(volume.id = %id, upper, "layers merged");
        Ok(())
    }

    async fn is_encrypted(&self, id: &VolumeId) -> Result<bool, Trouble> {
        let asked = id.clone();
        self.backend(move |b| b.is_encrypted(&asked)).await
    }

    /// The daemon does it, while it serves.
    async fn merge_served(&self, id: &VolumeId, upper: Option<Number>) -> Result<(), Trouble> {
        let mut daemon = self.exports.tell(id).await?;
        daemon.let_merge_end().await?;
        let (asked, again) = (id.clone(), id.clone());
        let layers = self.backend(move |b| b.numbers(&asked)).await?;
        if let Some(upper) = upper.filter(|upper| layers.contains(upper)) {
            let (device, asked) = (daemon.active_node().await?, id.clone());
            let bottom = self.backend(move |b| Ok(b.bottom(&asked))).await?;
            if device == node_name(upper) {
                return Err(Trouble::Other(format!("layer {upper} of {id} is written to")));
            }
            let job = json!({
                "job-id": MERGE_JOB, "device": device, "top-node": node_name(upper), "base-node": node_name(0),
                "backing-file": bottom, "auto-dismiss": false,
            });
            daemon.execute("block-commit", job).await?;
            daemon.finish_job(MERGE_JOB).await?;
        }
        // Those that came while the daemon ran belong to us; those it was started with went with the job.
        let layers = self.backend(move |b| b.numbers(&again)).await?;
        // The highest first, which holds those below it; some of them go with it.
        while let Some(layer) = daemon.layers().await?.into_iter().filter(|n| !layers.contains(n)).max() {
            daemon.execute("blockdev-del", json!({ "node-name": node_name(layer) })).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::row::Row, *};

    #[test]
    fn only_layers_that_no_snapshot_needs_apart_are_merged() {
        let row = |state, layer, accepted| Row { layer, accepted, manifest: Some("m".into()), ..Row::new(state) };
        let (safe, sent) = (|n| row(State::Uploaded, n, true), |n| row(State::Uploaded, n, false));
        let (frozen, gone) = (|n| row(State::Frozen, n, false), |n| row(State::Gone, n, false));
        let table: &[(&[Row], &[Number], Option<Number>)] = &[
            (&[], &[0], None),
            (&[], &[1, 0], None),
            (&[safe(0)], &[1, 0], None),
            (&[safe(0), frozen(1)], &[2, 1, 0], None),
            (&[safe(0), sent(1)], &[2, 1, 0], None),
            (&[safe(0), safe(1)], &[2, 1, 0], Some(1)),
            (&[safe(0), safe(1), frozen(2)], &[3, 2, 1, 0], Some(1)),
            (&[safe(0), frozen(1), safe(2)], &[3, 2, 1, 0], None),
            // Deleted ones: what lies above the newest that is left stays apart from it.
            (&[safe(0), gone(1)], &[2, 1, 0], None),
            (&[gone(0), gone(1)], &[2, 1, 0], Some(1)),
            (&[gone(0), gone(1), frozen(2)], &[3, 2, 1, 0], Some(1)),
        ];
        for (rows, layers, expected) in table {
            let snapshots = rows.iter().map(|r| (format!("snap-{}", r.layer), r.clone())).collect();
            let of = OfVolume { snapshots, merged: 0 };
            assert_eq!(upper(&of, layers), *expected, "{rows:?} {layers:?}");
        }
    }
}
