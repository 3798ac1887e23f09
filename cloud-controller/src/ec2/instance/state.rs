//! EC2's state of an instance: one pure function of what is wanted and what was observed.
//!
//! ```text
//!             RunInstances                    StopInstances, or the guest powered off
//!                  │                                 │
//!               pending ──────────► running ─────► stopping ─────► stopped
//!                  ▲                   │                              │ │
//!                  └───────────────────┼──────── StartInstances ──────┘ │
//!                                      ▼                                ▼
//!                               shutting-down ──────────────────► terminated
//! ```
//! A row is `running` only when a node said so, and `stopped` or `terminated` only when a node said that.

use mallee_tiers::{Desired, Observed};
use serde::Serialize;

use super::row::{Cause, Instance};

/// A state as EC2 shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct State {
    pub code: u16,
    pub name: &'static str,
}

pub const PENDING: State = State { code: 0, name: "pending" };
pub const RUNNING: State = State { code: 16, name: "running" };
pub const SHUTTING_DOWN: State = State { code: 32, name: "shutting-down" };
pub const TERMINATED: State = State { code: 48, name: "terminated" };
pub const STOPPING: State = State { code: 64, name: "stopping" };
pub const STOPPED: State = State { code: 80, name: "stopped" };

/// Every state, in the order of life.
pub const ALL: [State; 6] = [PENDING, RUNNING, STOPPING, STOPPED, SHUTTING_DOWN, TERMINATED];

/// EC2's state. `started`: it has run before, so that a silent node or a word of a later release does not unmake it.
pub fn state(desired: Desired, observed: Option<Observed>, started: bool) -> State {
    match desired {
        Desired::Running | Desired::Unknown => match observed {
            Some(Observed::Running) => RUNNING,
            // The node does not answer, or says what this release has no word for: the guest most likely runs on.
            Some(Observed::Unreachable | Observed::Unknown) if started => RUNNING,
            // Asked to power off by somebody other than us.
            Some(Observed::Stopping) => STOPPING,
            _ => PENDING,
        },
        Desired::Stopped => match observed {
            // A failed one has no guest: nothing is left to be stopped.
            Some(Observed::Stopped | Observed::Failed) => STOPPED,
            _ => STOPPING,
        },
        Desired::Terminated => match observed {
            Some(Observed::Gone) => TERMINATED,
            _ => SHUTTING_DOWN,
        },
    }
}

/// `stateReason`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateReason {
    pub code: &'static str,
    pub message: String,
}

/// Why it is in its state, as `stateReason` tells it. None: there is nothing to say of a running one.
pub fn state_reason(state: State, cause: Cause, reason: &str) -> Option<StateReason> {
    let (code, message) = match (state, cause) {
        (RUNNING, _) => return None,
        (PENDING, _) => ("pending", if reason.is_empty() { "pending".to_owned() } else { reason.to_owned() }),
        (_, Cause::User) => {
            ("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown".to_owned())
        }
        (_, Cause::Guest) => (
            "Client.InstanceInitiatedShutdown",
            "Client.InstanceInitiatedShutdown: Instance initiated shutdown".to_owned(),
        ),
        (_, Cause::Failure) => {
            let why = if reason.is_empty() { "Internal error on launch" } else { reason };
            ("Server.InternalError", format!("Server.InternalError: {why}"))
        }
    };
    Some(StateReason { code, message })
}

/// The older `reason` text beside the state.
pub fn transition_reason(state: State, cause: Cause, asked_at: i64) -> String {
    match (state, cause) {
        (PENDING | RUNNING, _) => String::new(),
        (_, Cause::User) => {
            let at = mallee_aws::answer::timestamp(asked_at);
            let (date, time) = (at.get(..10).unwrap_or_default(), at.get(11..19).unwrap_or_default());
            format!("User initiated ({date} {time} GMT)")
        }
        (_, Cause::Guest) => "Client.InstanceInitiatedShutdown".into(),
        (_, Cause::Failure) => "Server.InternalError".into(),
    }
}

impl Instance {
    pub fn state(&self) -> State {
        // For its user it runs all the while, as at AWS.
        let held = self.options.hold.is_some() && self.desired == Desired::Running && self.started.is_some();
        if held && !matches!(self.observed, Some(Observed::Failed | Observed::Gone)) {
            return RUNNING;
        }
        state(self.desired, self.observed, self.started.is_some())
    }

    pub fn state_reason(&self) -> Option<StateReason> {
        state_reason(self.state(), self.cause, &self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use Observed::*;
        let seen = [
            None,
            Some(Waiting),
            Some(Preparing),
            Some(Running),
            Some(Stopping),
            Some(Stopped),
            Some(Terminating),
            Some(Gone),
            Some(Failed),
            Some(Unreachable),
            Some(Unknown),
        ];
        let table = [
            (
                Desired::Running,
                false,
                "pending pending pending running stopping pending pending pending pending pending pending",
            ),
            (
                Desired::Running,
                true,
                "pending pending pending running stopping pending pending pending pending running running",
            ),
            (
                Desired::Unknown,
                true,
                "pending pending pending running stopping pending pending pending pending running running",
            ),
            (
                Desired::Stopped,
                true,
                "stopping stopping stopping stopping stopping stopped stopping stopping stopped stopping stopping",
            ),
            (
                Desired::Terminated,
                true,
                "shutting-down shutting-down shutting-down shutting-down shutting-down shutting-down shutting-down terminated \
                 shutting-down shutting-down shutting-down",
            ),
        ];
        for (desired, started, expected) in table {
            let got: Vec<&str> = seen.iter().map(|o| state(desired, *o, started).name).collect();
            assert_eq!(got.join(" "), expected, "{desired:?} {started}");
        }
    }

    #[test]
    fn reasons_say_who_ended_it() {
        assert_eq!(state_reason(RUNNING, Cause::User, ""), None);
        assert_eq!(state_reason(STOPPED, Cause::Guest, "").unwrap().code, "Client.InstanceInitiatedShutdown");
        let failed = state_reason(TERMINATED, Cause::Failure, "image: no such blob").unwrap();
        assert_eq!(failed.message, "Server.InternalError: image: no such blob");
        assert_eq!(state_reason(PENDING, Cause::User, "no node fits").unwrap().message, "no node fits");
        assert_eq!(
            transition_reason(STOPPED, Cause::User, 1_795_136_523_007),
            "User initiated (2026-11-20 01:02:03 GMT)"
        );
    }
}
