//! Where an instance goes: a pure function of what it needs and what the nodes have, with the reason either way.

use std::collections::BTreeMap;

use mallee_tiers::Capacity;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The node with the most free memory.
    #[default]
    Spread,
    /// The node with the least free memory that is enough.
    Pack,
}

/// Whether a node takes new instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    Up,
    /// It is known and does not answer.
    Silent,
    /// It answers, and has not yet said what it runs.
    Unseen,
    /// It shall be emptied.
    Draining,
}

/// A node as placement sees it.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub name: String,
    pub state: NodeState,
    /// With overcommitment already in it.
    pub capacity: Capacity,
    pub used: Capacity,
}

/// What an instance needs. Two of the same shape have the same answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_gib: u64,
    /// The only node it may run on.
    pub pin: Option<String>,
}

/// The node's index, and in words why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub node: usize,
    pub because: String,
}

/// Finds the node for `shape`, or says why there is none, in words a person can act on.
pub fn place(shape: &Shape, nodes: &[Candidate], policy: Policy) -> Result<Choice, String> {
    if let Some(pin) = &shape.pin {
        let found = nodes.iter().position(|n| n.name == *pin);
        let node = found.ok_or_else(|| format!("it must run on node {pin}, which has not registered"))?;
        return match obstacle(shape, &nodes[node]) {
            None => Ok(Choice { node, because: "it must run there".into() }),
            Some(o) => Err(format!("it must run on node {pin}, which {}", o.singular())),
        };
    }
    if nodes.is_empty() {
        return Err("no node fits: no node has registered".into());
    }
    let mut obstacles: BTreeMap<Obstacle, usize> = BTreeMap::new();
    let mut fits = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match obstacle(shape, node) {
            None => fits.push((free_memory(node), index)),
            Some(o) => *obstacles.entry(o).or_default() += 1,
        }
    }
    // Ties go to the node that was given first, so that the answer is the same every time.
    let best = match policy {
        Policy::Spread => fits.iter().max_by_key(|(free, index)| (*free, std::cmp::Reverse(*index))),
        Policy::Pack => fits.iter().min_by_key(|(free, index)| (*free, *index)),
    };
    match best {
        Some((free, node)) => {
            let superlative = if policy == Policy::Spread { "most" } else { "least" };
            let because = match fits.len() {
                1 => format!("the only node that fits, {free} MiB of memory free"),
                n => format!("the {superlative} free memory, {free} MiB, of {n} nodes that fit"),
            };
            Ok(Choice { node: *node, because })
        }
        None => {
            let reasons: Vec<String> = obstacles.iter().map(|(o, n)| o.counted(*n)).collect();
            Err(format!("no node fits: {}", reasons.join(", ")))
        }
    }
}

/// Why a node does not take an instance; the first that applies is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    Memory,
    Vcpus,
    Disk,
    Draining,
    Silent,
    Unseen,
}

impl Obstacle {
    fn singular(self) -> &'static str {
        match self {
            Obstacle::Memory => "lacks memory",
            Obstacle::Vcpus => "lacks vCPUs",
            Obstacle::Disk => "lacks disk",
            Obstacle::Draining => "is draining",
            Obstacle::Silent => "does not answer",
            Obstacle::Unseen => "has not yet reported what it runs",
        }
    }

    fn counted(self, n: usize) -> String {
        if n == 1 {
            return format!(
                "1 {}",
                if self.is_lack() { format!("node {}", self.singular()) } else { self.singular().into() }
            );
        }
        let plural = match self {
            Obstacle::Memory => "nodes lack memory",
            Obstacle::Vcpus => "nodes lack vCPUs",
            Obstacle::Disk => "nodes lack disk",
            Obstacle::Draining => "are draining",
            Obstacle::Silent => "do not answer",
            Obstacle::Unseen => "have not yet reported what they run",
        };
        format!("{n} {plural}")
    }

    fn is_lack(self) -> bool {
        matches!(self, Obstacle::Memory | Obstacle::Vcpus | Obstacle::Disk)
    }
}

fn free_memory(node: &Candidate) -> u64 {
    node.capacity.memory_mib.saturating_sub(node.used.memory_mib)
}

fn obstacle(shape: &Shape, node: &Candidate) -> Option<Obstacle> {
    match node.state {
        NodeState::Up => {}
        NodeState::Silent => return Some(Obstacle::Silent),
        NodeState::Unseen => return Some(Obstacle::Unseen),
        NodeState::Draining => return Some(Obstacle::Draining),
    }
    if shape.memory_mib > free_memory(node) {
        return Some(Obstacle::Memory);
    }
    if shape.vcpus > node.capacity.vcpus.saturating_sub(node.used.vcpus) {
        return Some(Obstacle::Vcpus);
    }
    (shape.disk_gib > node.capacity.disk_gib.saturating_sub(node.used.disk_gib)).then_some(Obstacle::Disk)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, state: NodeState, memory: u64, used: u64) -> Candidate {
        Candidate {
            name: name.into(),
            state,
            capacity: Capacity { vcpus: 8, memory_mib: memory, disk_gib: 100 },
            used: Capacity { vcpus: 1, memory_mib: used, disk_gib: 1 },
        }
    }

    fn shape(memory_mib: u64) -> Shape {
        Shape { vcpus: 1, memory_mib, disk_gib: 1, pin: None }
    }

    #[test]
    fn a_refusal_counts_the_nodes_by_what_they_lack() {
        let nodes = [
            node("a", NodeState::Up, 100, 0),
            node("b", NodeState::Up, 100, 0),
            node("c", NodeState::Up, 100, 0),
            node("d", NodeState::Draining, 9999, 0),
            node("e", NodeState::Silent, 9999, 0),
        ];
        assert_eq!(
            place(&shape(512), &nodes, Policy::Spread).unwrap_err(),
            "no node fits: 3 nodes lack memory, 1 is draining, 1 does not answer"
        );
        assert_eq!(place(&shape(1), &[], Policy::Spread).unwrap_err(), "no node fits: no node has registered");
        let many_cpus = Shape { vcpus: 99, ..shape(1) };
        assert_eq!(place(&many_cpus, &nodes[..1], Policy::Spread).unwrap_err(), "no node fits: 1 node lacks vCPUs");
    }

    #[test]
    fn a_pinned_instance_goes_to_its_node_or_nowhere() {
        let nodes = [node("a", NodeState::Up, 100, 0), node("b", NodeState::Up, 1000, 0)];
        let pinned = |pin: &str, memory| Shape { pin: Some(pin.into()), ..shape(memory) };
        assert_eq!(place(&pinned("a", 50), &nodes, Policy::Spread).unwrap().node, 0);
        assert_eq!(
            place(&pinned("a", 500), &nodes, Policy::Spread).unwrap_err(),
            "it must run on node a, which lacks memory"
        );
        assert_eq!(
            place(&pinned("x", 5), &nodes, Policy::Spread).unwrap_err(),
            "it must run on node x, which has not registered"
        );
    }

    #[test]
    fn spread_takes_the_emptiest_node_and_pack_the_fullest_that_fits() {
        let nodes = [
            node("a", NodeState::Up, 1000, 900),
            node("b", NodeState::Up, 1000, 100),
            node("c", NodeState::Up, 1000, 500),
        ];
        assert_eq!(place(&shape(200), &nodes, Policy::Spread).unwrap().node, 1);
        assert_eq!(place(&shape(200), &nodes, Policy::Pack).unwrap().node, 2);
    }

    fn any_node() -> impl Strategy<Value = Candidate> {
        let state = prop_oneof![
            4 => Just(NodeState::Up),
            1 => Just(NodeState::Silent),
            1 => Just(NodeState::Unseen),
            1 => Just(NodeState::Draining)
        ];
        (state, 0u32..32, 0u64..8192, 0u64..200, 0u32..40, 0u64..9000, 0u64..250).prop_map(
            |(state, vcpus, memory_mib, disk_gib, v, m, d)| Candidate {
                name: "n".into(),
                state,
                capacity: Capacity { vcpus, memory_mib, disk_gib },
                used: Capacity { vcpus: v, memory_mib: m, disk_gib: d },
            },
        )
    }

    proptest! {
        /// Whatever the nodes: the choice fits, and a refusal is never given while some node fits.
        #[test]
        fn a_choice_always_fits_and_a_refusal_is_always_true(
            nodes in proptest::collection::vec(any_node(), 0..12),
            vcpus in 1u32..16, memory_mib in 1u64..6000, disk_gib in 0u64..100, pack in any::<bool>(),
        ) {
            let shape = Shape { vcpus, memory_mib, disk_gib, pin: None };
            let policy = if pack { Policy::Pack } else { Policy::Spread };
            let fits = |n: &Candidate| n.state == NodeState::Up
                && n.used.vcpus as u64 + vcpus as u64 <= n.capacity.vcpus as u64
                && n.used.memory_mib + memory_mib <= n.capacity.memory_mib
                // Who takes nothing of the disk, as with its root on a volume, fits a node that has given out too much.
                && (disk_gib == 0 || n.used.disk_gib + disk_gib <= n.capacity.disk_gib);
            match place(&shape, &nodes, policy) {
                Ok(choice) => {
                    prop_assert!(fits(&nodes[choice.node]));
                    let free = |n: &Candidate| n.capacity.memory_mib - n.used.memory_mib;
                    for other in nodes.iter().filter(|n| fits(n)) {
                        if pack { prop_assert!(free(other) >= free(&nodes[choice.node])); }
                        else { prop_assert!(free(other) <= free(&nodes[choice.node])); }
                    }
                }
                Err(why) => {
                    prop_assert!(!nodes.iter().any(fits), "{why}");
                    prop_assert!(why.starts_with("no node fits: "));
                }
            }
        }
    }
}
