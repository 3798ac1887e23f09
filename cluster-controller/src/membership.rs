//! Nodes that are emptied, and nodes that leave for good.
//!
//! ```text
//!  up ──drain──► draining (keeps what it runs, is given nothing new) ──ended, with nothing on it──► silent ──remove──► gone
//!   ▲               │
//!   └────serve──────┘              silent ──remove, declared lost──► gone; what was on it is placed anew
//! ```
//! A node that was removed may not register again until a token is made for its name: a machine that was declared lost and is
//! switched on after all must not bring back guests that run elsewhere by now.

use mallee_store::{Error as StoreError, Migration, Tx, params};
use mallee_tiers::{NodeAsked, NodeWish, TierError};
use std::sync::Arc;

use crate::{Zone, event, node::Presence};

pub(crate) const REMOVED: Migration = Migration {
    version: 5,
    name: "removed nodes",
    sql: "CREATE TABLE removed_node (name TEXT PRIMARY KEY, at BIGINT NOT NULL);",
};

fn internal(e: StoreError) -> TierError {
    TierError::internal(e.to_string())
}

pub(crate) fn is_removed(tx: &mut Tx<'_>, name: &str) -> Result<bool, StoreError> {
    let found: Option<String> =
        tx.query_opt("SELECT name FROM removed_node WHERE name = ?1", params![name], |row| row.get(0))?;
    Ok(found.is_some())
}

impl Zone {
    pub(crate) async fn change_node(self: &Arc<Self>, asked: NodeAsked) -> Result<(), TierError> {
        let name = asked.node.as_str();
        match asked.wish {
            NodeWish::Drain => self.set_draining(name, true).await,
            NodeWish::Serve => self.set_draining(name, false).await,
            NodeWish::Remove => self.remove_node(name, false).await,
            NodeWish::RemoveLost => self.remove_node(name, true).await,
            NodeWish::Admit => self.admit_again(name).await,
            NodeWish::Unknown => Err(TierError::refused("this release does not know what is wanted of the node")),
        }
    }

    async fn set_draining(&self, name: &str, draining: bool) -> Result<(), TierError> {
        let node = self.nodes.get(name).ok_or_else(|| unknown(name))?;
        let row = name.to_owned();
        self.store
            .write("drain a node", move |tx| {
                tx.execute("UPDATE node SET draining = ?2 WHERE name = ?1", params![row, draining]).map(drop)
            })
            .await
            .map_err(internal)?;
        node.set_draining(draining);
        self.news.node(name);
        // What waits for a place may have one now.
        self.news.intent();
        Ok(())
    }

    async fn remove_node(self: &Arc<Self>, name: &str, lost: bool) -> Result<(), TierError> {
        let node = self.nodes.get(name).ok_or_else(|| unknown(name))?;
        // No pass places anything meanwhile.
        let mut world = self.world.lock().await;
        let Some(known) = world.as_ref() else {
            return Err(TierError::refused("what is on the node is not known at the moment: say it again"));
        };
        let on: Vec<String> =
            known.on.get(name).into_iter().flatten().filter(|id| !node.is_gone(id)).cloned().collect();
        let presence = node.presence(self.begun, self.config.lease());
        if lost && !matches!(presence, Presence::Silent(_)) {
            return Err(TierError::refused(format!(
                "node {name} answers: it is not lost; drain it, and remove it when it is empty"
            )));
        }
        if !lost && !node.machine().draining {
            return Err(TierError::refused(format!("node {name} takes new instances: drain it first")));
        }
        if !lost && !on.is_empty() {
            return Err(TierError::refused(format!(
                "{} on node {name}: {}; terminate them, or, if the machine will never come back, say that it is lost",
                if on.len() == 1 { "1 instance is".to_owned() } else { format!("{} instances are", on.len()) },
                on.join(", ")
            )));
        }
        if !lost && !matches!(presence, Presence::Silent(_)) {
            return Err(TierError::refused(format!(
                "node {name} answers: it can leave when nothing of it runs any more (`mallee down --all` on that machine)"
            )));
        }
        // Orphans are in no list, and whoever runs them would never be found again.
        let orphans: Vec<String> =
            node.reported_ids().into_iter().filter(|id| !node.is_gone(id) && !on.contains(id)).collect();
        if !lost && !orphans.is_empty() {
            return Err(TierError::refused(format!("node {name} still reports {}", orphans.join(", "))));
        }
        let (row, now, seq) = (name.to_owned(), self.clock.now_ms(), known.seq);
        let told: Vec<String> = on.clone();
        self.store
            .write("remove a node", move |tx| {
                tx.execute("DELETE FROM node WHERE name = ?1", params![row])?;
                tx.execute("DELETE FROM node_list WHERE node = ?1", params![row])?;
                tx.execute("DELETE FROM placement WHERE node = ?1", params![row])?;
                for (at, id) in (seq + 1..).zip(&told) {
                    let text = format!(
                        "node {row} was declared lost, and its disk with it: it is placed anew, with a new disk"
                    );
                    event::write(tx, at, id, now, &text)?;
                }
                tx.execute(
                    "INSERT INTO removed_node (name, at) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET at = ?2",
                    params![row, now],
                )
                .map(drop)
            })
            .await
            .map_err(internal)?;
        // Made anew from the store by the next pass.
        *world = None;
        drop(world);
        self.nodes.drop(&node);
        for fault in [format!("node {name}"), format!("list of node {name}")] {
            self.about.faults.clear(&fault);
        }
        for id in on {
            // What the node last said of it is history.
            self.reports.forget(&id);
        }
        self.news.intent();
        tracing::info!(node = name, lost, "removed");
        Ok(())
    }

    async fn admit_again(&self, name: &str) -> Result<(), TierError> {
        let name = name.to_owned();
        self.store
            .write("admit a node", move |tx| {
                tx.execute("DELETE FROM removed_node WHERE name = ?1", params![name]).map(drop)
            })
            .await
            .map_err(internal)
    }
}

fn unknown(name: &str) -> TierError {
    TierError::not_found(format!("no node {name} has registered in this zone"))
}
