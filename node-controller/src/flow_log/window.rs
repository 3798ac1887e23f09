//! What was seen of one interface within an interval, and what became of it. Pure.
//!
//! What is delivered to a guest was accepted, and is counted where it is handed over. What a guest sends is counted where it is
//! taken from it; what the switch then refused is told apart from that by the refusals themselves, which come a moment
//! later, so a window is settled only [`GRACE_MS`] after its end. Refused packets for the guest are counted by their refusals.

use std::collections::HashMap;

use mallee_tiers::Millis;

use super::packet::{Packet, TcpFlags, Tuple};

/// Until when refusals of a window's packets may come.
pub const GRACE_MS: Millis = 2_000;
/// Flows of one window and interface. A guest that is scanned, or scans, cannot take the node's memory.
const MOST_FLOWS: usize = 50_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    Accept,
    Reject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
    /// Seen in any of them.
    pub flags: TcpFlags,
    /// Milliseconds.
    pub first: Millis,
    pub last: Millis,
}

impl Count {
    fn add(&mut self, packet: &Packet, now: Millis) {
        if self.packets == 0 {
            self.first = now;
        }
        self.packets += 1;
        self.bytes += packet.bytes;
        self.flags.0 |= packet.flags.0;
        self.last = now;
    }

    /// The rest of `self` when `part` of it is another's. The times and flags of one that is in both are of both.
    fn without(&self, part: &Count) -> Count {
        Count {
            packets: self.packets.saturating_sub(part.packets),
            bytes: self.bytes.saturating_sub(part.bytes),
            ..*self
        }
    }
}

/// One line's worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub direction: Direction,
    pub action: Action,
    pub tuple: Tuple,
    pub count: Count,
}

#[derive(Debug, Default)]
struct Seen {
    /// Handed over to the guest, or taken from it.
    passed: Count,
    refused: Count,
}

/// An interval.
#[derive(Debug, Default)]
pub struct Window {
    pub begin: Millis,
    pub end: Millis,
    seen: HashMap<(Direction, Tuple), Seen>,
    /// Something was not counted.
    skipped: bool,
    /// Refusals were not told: what was sent and not refused was not necessarily accepted.
    deaf: bool,
}

/// What a window is in the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled {
    pub begin: Millis,
    pub end: Millis,
    /// In the order of their addresses, so that the same packets make the same lines.
    pub flows: Vec<Flow>,
    pub skipped: bool,
}

impl Window {
    fn new(begin: Millis, end: Millis) -> Self {
        Self { begin, end, ..Self::default() }
    }

    fn entry(&mut self, direction: Direction, tuple: Tuple) -> Option<&mut Seen> {
        if self.seen.len() >= MOST_FLOWS && !self.seen.contains_key(&(direction, tuple)) {
            self.skipped = true;
            return None;
        }
        Some(self.seen.entry((direction, tuple)).or_default())
    }

    /// Packets of a flow from the guest whose fate is not known yet.
    fn undecided(&self, tuple: &Tuple) -> bool {
        self.seen.get(&(Direction::Out, *tuple)).is_some_and(|s| s.passed.packets > s.refused.packets)
    }

    fn settle(mut self) -> Settled {
        let mut flows = Vec::with_capacity(self.seen.len());
        let mut skipped = self.skipped || self.deaf;
        for ((direction, tuple), seen) in &self.seen {
            let (direction, tuple) = (*direction, *tuple);
            let (accepted, rejected) = match direction {
                Direction::In => (seen.passed, seen.refused),
                Direction::Out if !self.deaf => (seen.passed.without(&seen.refused), seen.refused),
                // Some refusals are missing: a flow that had any is taken for refused as a whole, whose numbers are known,
                // and one that had none for accepted only if it was answered.
                Direction::Out if seen.refused.packets > 0 => (Count::default(), seen.passed),
                Direction::Out if self.was_answered(&tuple) => (seen.passed, Count::default()),
                Direction::Out => {
                    skipped = true;
                    continue;
                }
            };
            for (action, count) in [(Action::Accept, accepted), (Action::Reject, rejected)] {
                if count.packets > 0 {
                    flows.push(Flow { direction, action, tuple, count });
                }
            }
        }
        flows.sort_by_key(|flow| (flow.direction, flow.tuple, flow.action));
        self.seen.clear();
        Settled { begin: self.begin, end: self.end, flows, skipped }
    }

    fn was_answered(&self, tuple: &Tuple) -> bool {
        self.seen.get(&(Direction::In, tuple.reversed())).is_some_and(|seen| seen.passed.packets > 0)
    }
}

/// The windows of one interface and one length: the one that is open, and the one that waits for late refusals.
#[derive(Debug)]
pub struct Windows {
    length: Millis,
    open: Window,
    closing: Option<Window>,
    settled: Vec<Settled>,
}

impl Windows {
    /// The first one begins now, and is shorter.
    pub fn new(length: Millis, now: Millis) -> Self {
        let length = length.max(1);
        let end = (now.div_euclid(length) + 1) * length;
        Self { length, open: Window::new(now, end), closing: None, settled: Vec::new() }
    }

    fn roll(&mut self, now: Millis) {
        if self.closing.as_ref().is_some_and(|closing| now >= closing.end + GRACE_MS) {
            self.settled.extend(self.closing.take().map(Window::settle));
        }
        if now < self.open.end {
            return;
        }
        let begin = now.div_euclid(self.length) * self.length;
        let ended = std::mem::replace(&mut self.open, Window::new(begin, begin + self.length));
        self.settled.extend(self.closing.replace(ended).map(Window::settle));
        // Nobody looked for longer than a window: it is over as well.
        if self.closing.as_ref().is_some_and(|closing| now >= closing.end + GRACE_MS) {
            self.settled.extend(self.closing.take().map(Window::settle));
        }
    }

    pub fn passed(&mut self, direction: Direction, packet: &Packet, now: Millis) {
        self.roll(now);
        if let Some(seen) = self.open.entry(direction, packet.tuple) {
            seen.passed.add(packet, now);
        }
    }

    pub fn refused(&mut self, direction: Direction, packet: &Packet, now: Millis) {
        self.roll(now);
        // One that was sent at the end of the last window is told of in this one.
        let late = direction == Direction::Out && !self.open.undecided(&packet.tuple);
        let window = match &mut self.closing {
            Some(closing) if late && closing.undecided(&packet.tuple) => closing,
            _ => &mut self.open,
        };
        if let Some(seen) = window.entry(direction, packet.tuple) {
            seen.refused.add(packet, now);
        }
    }

    /// Packets went by uncounted just now.
    pub fn lost(&mut self, now: Millis) {
        self.roll(now);
        self.open.skipped = true;
    }

    /// Refusals were not told just now.
    pub fn deafened(&mut self, now: Millis) {
        self.roll(now);
        self.open.deaf = true;
        if let Some(closing) = &mut self.closing {
            closing.deaf = true;
        }
    }

    /// What is over, the oldest first.
    pub fn take(&mut self, now: Millis) -> Vec<Settled> {
        self.roll(now);
        std::mem::take(&mut self.settled)
    }

    /// Everything, because the interface is gone.
    pub fn finish(mut self, now: Millis) -> Vec<Settled> {
        self.roll(now);
        let mut all = self.settled;
        all.extend(self.closing.map(Window::settle));
        self.open.end = self.open.end.min(now);
        all.push(self.open.settle());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Packet, parse, tests::frame};
    use super::*;

    fn packet(from: &str, to: &str, ports: (u16, u16), data: usize) -> Packet {
        let frame = frame(from, to, ports, 17, 0, data);
        parse(&frame, frame.len()).unwrap()
    }
    fn told(settled: &Settled) -> Vec<(Direction, Action, u16, u64, u64)> {
        settled
            .flows
            .iter()
            .map(|f| (f.direction, f.action, f.tuple.destination_port, f.count.packets, f.count.bytes))
            .collect()
    }
    use Action::{Accept, Reject};
    use Direction::{In, Out};

    #[test]
    fn what_was_sent_and_not_refused_was_accepted() {
        let mut windows = Windows::new(60_000, 30_000);
        let (good, bad) = (packet("10.0.0.5", "1.1.1.1", (1, 443), 12), packet("10.0.0.5", "1.1.1.1", (1, 25), 2));
        for now in [31_000, 59_000] {
            windows.passed(Out, &good, now);
            windows.passed(Out, &bad, now);
            windows.refused(Out, &bad, now + 3);
        }
        windows.passed(In, &packet("1.1.1.1", "10.0.0.5", (443, 1), 0), 32_000);
        windows.refused(In, &packet("2.2.2.2", "10.0.0.5", (9, 23), 0), 33_000);
        assert_eq!(windows.take(61_999), []);
        let settled = windows.take(62_000);
        assert_eq!((settled[0].begin, settled[0].end, settled[0].skipped), (30_000, 60_000, false));
        assert_eq!(
            told(&settled[0]),
            [(In, Accept, 1, 1, 28), (In, Reject, 23, 1, 28), (Out, Reject, 25, 2, 60), (Out, Accept, 443, 2, 80)]
        );
        let count = settled[0].flows[3].count;
        assert_eq!((count.first, count.last), (31_000, 59_000));
    }

    #[test]
    fn a_refusal_that_comes_after_the_windows_end_is_that_windows() {
        let mut windows = Windows::new(60_000, 0);
        let bad = packet("10.0.0.5", "1.1.1.1", (1, 25), 0);
        windows.passed(Out, &bad, 59_999);
        windows.refused(Out, &bad, 60_020);
        windows.passed(Out, &bad, 60_500);
        windows.refused(Out, &bad, 60_501);
        let settled = windows.take(200_000);
        assert_eq!(settled.len(), 2);
        for one in &settled {
            assert_eq!(told(one), [(Out, Reject, 25, 1, 28)]);
        }
    }

    #[test]
    fn while_refusals_are_missing_nothing_is_called_accepted_that_was_not_answered() {
        let mut windows = Windows::new(60_000, 0);
        let sent = |port| packet("10.0.0.5", "1.1.1.1", (1, port), 0);
        for port in [25, 25, 443, 53] {
            windows.passed(Out, &sent(port), 10);
        }
        windows.refused(Out, &sent(25), 11);
        windows.passed(In, &packet("1.1.1.1", "10.0.0.5", (443, 1), 0), 12);
        windows.deafened(13);
        let settled = windows.take(70_000);
        assert!(settled[0].skipped);
        assert_eq!(told(&settled[0]), [(In, Accept, 1, 1, 28), (Out, Reject, 25, 2, 56), (Out, Accept, 443, 1, 28)]);
    }

    #[test]
    fn a_flood_of_flows_is_skipped_and_said_so() {
        let mut windows = Windows::new(60_000, 0);
        for n in 0..=MOST_FLOWS as u32 {
            let ports = ((n >> 16) as u16 + 1, n as u16);
            windows.refused(In, &packet("2.2.2.2", "10.0.0.5", ports, 0), 1);
        }
        let settled = windows.take(70_000);
        assert!(settled[0].skipped && settled[0].flows.len() == MOST_FLOWS);
        assert!(!windows.take(140_000)[0].skipped);
    }

    #[test]
    fn an_interface_that_goes_leaves_what_was_seen_of_it() {
        let mut windows = Windows::new(60_000, 0);
        windows.passed(In, &packet("2.2.2.2", "10.0.0.5", (1, 2), 0), 59_000);
        windows.lost(61_000);
        let all = windows.finish(61_500);
        assert_eq!(
            all.iter().map(|s| (s.end, s.flows.len(), s.skipped)).collect::<Vec<_>>(),
            [(60_000, 1, false), (61_500, 0, true)]
        );
    }
}
