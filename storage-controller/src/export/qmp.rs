//! QMP: what an export daemon is told while it serves.

use std::{path::Path, time::Duration};

use mallee_service::steps::TARGET;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// A daemon that does not answer for so long is not asked any more; every command used here is quick.
const PATIENCE: Duration = Duration::from_secs(30);
/// A job is looked at so often.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("{command}: the export daemon cannot be asked: {detail}")]
    Lost { command: String, detail: String },
    #[error("{command}: the export daemon refused: {detail}")]
    Refused { command: String, detail: String },
}

/// What a merge is called.
pub const MERGE_JOB: &str = "merge";
/// What the job is called that fetches the rest of a volume's source.
pub const FILL_JOB: &str = "fill";

/// How a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    None,
    Runs,
    /// It ended well, and is forgotten.
    Done,
}

/// One conversation with one daemon. A daemon talks to one at a time.
pub struct Qmp {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    to: OwnedWriteHalf,
}

impl Qmp {
    pub async fn connect(socket: &Path) -> Result<Self, QmpError> {
        let lost = |detail: String| QmpError::Lost { command: "connect".into(), detail };
        let open = async {
            let (from, to) =
                UnixStream::connect(socket).await.map_err(|e| lost(format!("{}: {e}", socket.display())))?.into_split();
            let mut qmp = Self { lines: BufReader::new(from).lines(), to };
            // The greeting.
            qmp.lines.next_line().await.map_err(|e| lost(e.to_string()))?;
            qmp.execute("qmp_capabilities", json!({})).await?;
            Ok(qmp)
        };
        tokio::time::timeout(PATIENCE, open).await.unwrap_or_else(|_| Err(lost("no answer".into())))
    }

    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let lost = |detail: String| QmpError::Lost { command: format!("{command} {arguments}"), detail };
        tracing::trace!(target: TARGET, "before daemon: {command}");
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        let answer = async {
            self.to.write_all(line.as_bytes()).await.map_err(|e| lost(e.to_string()))?;
            loop {
                let line = self.lines.next_line().await.map_err(|e| lost(e.to_string()))?;
                let line = line.ok_or_else(|| lost("it hung up".into()))?;
                let mut message: Value = serde_json::from_str(&line).map_err(|e| lost(e.to_string()))?;
                if let Some(error) = message.get("error") {
                    let detail = error["desc"].as_str().unwrap_or_default().to_owned();
                    return Err(QmpError::Refused { command: format!("{command} {arguments}"), detail });
                }
                if let Some(answer) = message.get_mut("return") {
                    return Ok(answer.take());
                }
                // Else it is an event.
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(lost("no answer".into())));
        tracing::trace!(target: TARGET, "after daemon: {command}");
        answer
    }

    /// The node the guest writes to.
    pub async fn active_node(&mut self) -> Result<String, QmpError> {
        let exports = self.execute("query-block-exports", json!({})).await?;
        let name = exports.as_array().and_then(|all| all.first()?["node-name"].as_str());
        name.map(str::to_owned).ok_or_else(|| QmpError::Refused {
            command: "query-block-exports".into(),
            detail: "it has no export".into(),
        })
    }

    /// The highest layer it has open: what the guest writes to, also while there is no export.
    pub async fn top_node(&mut self) -> Result<String, QmpError> {
        if let Ok(active) = self.active_node().await {
            return Ok(active);
        }
        let top = self.layers().await?.into_iter().max().ok_or_else(|| QmpError::Refused {
            command: "query-named-block-nodes".into(),
            detail: "it has no layer".into(),
        })?;
        Ok(format!("layer-{top}"))
    }

    pub async fn has_node(&mut self, name: &str) -> Result<bool, QmpError> {
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        Ok(nodes.as_array().is_some_and(|all| all.iter().any(|n| n["node-name"] == name)))
    }

    /// The layers it has open.
    pub async fn layers(&mut self) -> Result<Vec<u32>, QmpError> {
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        let nodes = nodes.as_array().into_iter().flatten();
        Ok(nodes.filter_map(|n| n["node-name"].as_str()?.strip_prefix("layer-")?.parse().ok()).collect())
    }

    /// Waits until a merge ended that a controller before us began: while it is there, layers cannot be changed. How it
    /// ended is seen from the layers.
    pub async fn let_merge_end(&mut self) -> Result<(), QmpError> {
        match self.finish_job(MERGE_JOB).await {
            Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Waits until a job ended, if there is one of this name; forgets it; says how it ended.
    pub async fn finish_job(&mut self, id: &str) -> Result<bool, QmpError> {
        loop {
            match self.look_at_job(id).await? {
                Job::None => return Ok(false),
                Job::Done => return Ok(true),
                Job::Runs => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Looks at a job; one that ended is forgotten, and one that failed is an error.
    pub async fn look_at_job(&mut self, id: &str) -> Result<Job, QmpError> {
        let jobs = self.execute("query-jobs", json!({})).await?;
        let Some(job) = jobs.as_array().and_then(|all| all.iter().find(|j| j["id"] == id)) else {
            return Ok(Job::None);
        };
        if job["status"] != "concluded" {
            return Ok(Job::Runs);
        }
        let error = job["error"].as_str().map(str::to_owned);
        self.execute("job-dismiss", json!({ "id": id })).await?;
        match error {
            None => Ok(Job::Done),
            Some(detail) => Err(QmpError::Refused { command: format!("job {id}"), detail }),
        }
    }
}
