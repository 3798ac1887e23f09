//! Brings the rest of a source into its volume, while that is served.
//!
//! The daemon of the volume does it, by a job that copies from the backing file what the bottom layer does not have. It is
//! begun again from whatever is there, as often as it is cut off. A volume that was never attached copies nothing.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    Storage,
    backend::node_name,
    export::{FILL_JOB, Job},
    volume::{Trouble, VolumeId},
};

/// How far it is is looked at so often.
const LOOK: Duration = Duration::from_millis(200);

/// Under which name it runs in the background.
pub(crate) fn name(id: &VolumeId) -> String {
    format!("fill {id}")
}

impl Storage {
    /// Begins it, unless it is under way.
    pub(crate) fn begin_fill(self: &Arc<Self>, id: &VolumeId) {
        let (storage, volume) = (self.clone(), id.clone());
        self.background.begin(&name(id), async move { storage.fill(&volume).await });
    }

    async fn fill(&self, id: &VolumeId) -> Result<(), Trouble> {
        let mut begun = false;
        loop {
            // A daemon talks to one at a time, and a snapshot must not wait for this.
            let mut daemon = self.exports.tell(id).await?;
            match daemon.look_at_job(FILL_JOB).await? {
                Job::Done => break,
                Job::Runs => {}
                Job::None if begun => {
                    return Err(Trouble::Other(format!("the job that fetches the rest of {id} went away")));
                }
                Job::None => {
                    let job = json!({ "job-id": FILL_JOB, "device": node_name(0), "auto-dismiss": false });
                    daemon.execute("block-stream", job).await?;
                }
            }
            begun = true;
            drop(daemon);
            tokio::time::sleep(LOOK).await;
        }
        let filled = id.clone();
        self.backend(move |b| b.set_filled(&filled)).await?;
        self.sources.forget(id);
        tracing::info!(volume.id = %id, "all of its source is fetched");
        Ok(())
    }
}
