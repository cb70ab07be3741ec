//! Entries go to a majority of the replicas at once, and to the others when that majority has
//! acknowledged them, or a little later.
//!
//! A write is acknowledged when a majority has it. What the other replicas do at the same time only
//! takes the processors and the disk that the majority waits for, when they share a machine; so their
//! copies of an entry wait in the engine until the next completion, at most [`HOLD_TIME_MAX`]. Who
//! comes late is chosen by experience: a replica that did not answer in that time is the next to be
//! late, so one that hangs is waited for once and not again. The first [`HOLD_AFTER`] entries after a
//! completion wait for nothing: with few requests in flight, one more wake-up costs more than the disk.

use crate::limits::{HOLD_AFTER, HOLD_PAUSE, HOLD_TIME_MAX};
use trilith_block::{ConnId, Monotonic};
use trilith_wire::Kind;

/// A connection to a replica.
#[derive(Clone, Copy, Debug)]
struct Lane {
    conn: ConnId,
    held: bool,
    /// Since the last release: entries queued, and whether something has come.
    entries: u32,
    answered: bool,
}

impl Lane {
    /// Was to answer and did not.
    fn is_slow(&self) -> bool {
        !(self.held || self.entries > 0 && self.answered)
    }
}

/// What is to be done with a connection that something was queued for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It may leave.
    Go,
    /// It waits until [`Lanes::due`].
    Hold,
}

/// The connections to the replicas, those first that come first. At most one a member and a few
/// that are being closed.
#[derive(Debug)]
pub(crate) struct Lanes {
    majority: usize,
    lanes: Vec<Lane>,
    /// It costs no wake-up, so it is waited for before the others.
    preferred: Option<ConnId>,
    /// When the oldest entry held was queued.
    since: Option<Monotonic>,
    completed: bool,
    /// Nothing is held before.
    pause_until: Monotonic,
}

impl Lanes {
    /// For a volume whose writes need `majority` replicas.
    pub(crate) fn new(majority: usize) -> Lanes {
        Lanes {
            majority,
            lanes: Vec::new(),
            preferred: None,
            since: None,
            completed: false,
            pause_until: Monotonic(0),
        }
    }

    /// From now on the first `majority` replicas are enough. `usize::MAX` when that cannot be said
    /// of any number, as while one is replaced: then nothing waits.
    pub(crate) fn set_majority(&mut self, majority: usize) {
        self.majority = majority;
    }

    /// This connection is to a replica in the same process.
    pub(crate) fn prefer(&mut self, conn: ConnId) {
        self.preferred = Some(conn);
    }

    /// A frame with this head was queued for `conn`.
    pub(crate) fn sent(&mut self, now: Monotonic, conn: ConnId, head: &[u8]) -> Verdict {
        let is_entry = trilith_wire::kind_of(head) == Some(Kind::Append);
        let at = self.lanes.iter().position(|lane| lane.conn == conn);
        let at = match at {
            Some(at) => at,
            None if is_entry => {
                let is_preferred = self.preferred == Some(conn);
                let at = if is_preferred { 0 } else { self.lanes.len() };
                let lane = Lane {
                    conn,
                    held: false,
                    entries: 0,
                    answered: false,
                };
                self.lanes.insert(at, lane);
                at
            }
            None => return Verdict::Go,
        };
        let lane = &mut self.lanes[at];
        lane.entries += u32::from(is_entry);
        let is_burst = lane.entries > HOLD_AFTER;
        lane.held = is_entry && is_burst && at >= self.majority && now >= self.pause_until;
        if !lane.held {
            return Verdict::Go;
        }
        self.since.get_or_insert(now);
        Verdict::Hold
    }

    /// Something has come from a replica.
    pub(crate) fn heard(&mut self, conn: ConnId) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.conn == conn) {
            lane.answered = true;
        }
    }

    /// A connection is gone; what was held is due, as another must take its place.
    pub(crate) fn closed(&mut self, conn: ConnId) {
        self.lanes.retain(|lane| lane.conn != conn);
        self.completed = true;
    }

    /// A request has been answered.
    pub(crate) fn completed(&mut self) {
        self.completed = true;
    }

    /// When [`Lanes::due`] is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        self.since.map(|since| since.after(HOLD_TIME_MAX))
    }

    /// Puts the connections whose output may leave now behind `out`.
    pub(crate) fn due(&mut self, now: Monotonic, out: &mut Vec<ConnId>) {
        let late = self.deadline().is_some_and(|at| at <= now);
        if !core::mem::take(&mut self.completed) && !late {
            return;
        }
        if late && self.lanes.iter().any(Lane::is_slow) {
            let preferred = self.preferred;
            let is_other = |lane: &Lane| Some(lane.conn) != preferred;
            self.lanes
                .sort_by_key(|lane| (lane.is_slow(), is_other(lane)));
            self.pause_until = now.after(HOLD_PAUSE);
        }
        self.since = None;
        for lane in &mut self.lanes {
            (lane.entries, lane.answered) = (0, false);
            if core::mem::take(&mut lane.held) {
                out.push(lane.conn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: u8 = 29;

    fn head(kind: u8) -> [u8; 64] {
        let mut head = [0; 64];
        head[3] = kind;
        head
    }

    /// The end of a burst: which copies of its last entry wait.
    fn entry(lanes: &mut Lanes, now: Monotonic) -> Vec<bool> {
        let append = head(20);
        for conn in (0..HOLD_AFTER).flat_map(|_| 1..=3) {
            assert_eq!(lanes.sent(now, ConnId(conn), &append), Verdict::Go);
        }
        (1..=3)
            .map(|conn| lanes.sent(now, ConnId(conn), &append) == Verdict::Hold)
            .collect()
    }

    fn due(lanes: &mut Lanes, now: Monotonic) -> Vec<u64> {
        let mut out = Vec::new();
        lanes.due(now, &mut out);
        out.iter().map(|conn| conn.0).collect()
    }

    #[test]
    fn third_copy_waits_for_the_completion_by_the_first_two() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        assert_eq!(entry(&mut lanes, now), [false, false, true]);
        assert!(due(&mut lanes, now).is_empty());
        lanes.completed();
        assert_eq!(due(&mut lanes, now), [3]);
        assert!(due(&mut lanes, now).is_empty() && lanes.deadline().is_none());
        assert_eq!(entry(&mut lanes, now), [false, false, true]);
    }

    #[test]
    fn replica_of_the_same_process_comes_first_unless_it_is_slow() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        lanes.prefer(ConnId(3));
        assert_eq!(entry(&mut lanes, now), [false, true, false]);
        // It hangs, and later so does the other one that was waited for.
        lanes.heard(ConnId(1));
        let later = lanes.deadline().unwrap();
        assert_eq!(due(&mut lanes, later), [2]);
        let after = later.after(HOLD_PAUSE);
        assert_eq!(entry(&mut lanes, after), [false, false, true]);
        lanes.heard(ConnId(1));
        let later = lanes.deadline().unwrap();
        assert_eq!(due(&mut lanes, later), [3]);
        let after = later.after(HOLD_PAUSE);
        assert_eq!(entry(&mut lanes, after), [false, true, false]);
    }

    #[test]
    fn nothing_waits_while_no_number_of_replicas_is_enough() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        assert_eq!(entry(&mut lanes, now), [false, false, true]);
        lanes.set_majority(usize::MAX);
        lanes.completed();
        assert_eq!(due(&mut lanes, now), [3], "what waited before is not left");
        assert_eq!(entry(&mut lanes, now), [false, false, false]);
        lanes.completed();
        assert!(due(&mut lanes, now).is_empty());
        lanes.set_majority(2);
        assert_eq!(entry(&mut lanes, now), [false, false, true]);
    }

    #[test]
    fn single_writes_go_to_all_at_once() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        for _ in 0..5 {
            for conn in 1..=3 {
                assert_eq!(lanes.sent(now, ConnId(conn), &head(20)), Verdict::Go);
            }
            lanes.completed();
            assert!(due(&mut lanes, now).is_empty());
        }
    }

    #[test]
    fn other_frames_wait_for_nothing_and_take_along_what_is_held() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        assert_eq!(entry(&mut lanes, now), [false, false, true]);
        let verdict = lanes.sent(now, ConnId(3), &head(HEARTBEAT));
        assert_eq!(verdict, Verdict::Go);
        assert!(due(&mut lanes, now).is_empty());
        lanes.completed();
        assert!(due(&mut lanes, now).is_empty());
    }

    #[test]
    fn who_does_not_answer_in_time_is_late_from_then_on() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        entry(&mut lanes, now);
        lanes.heard(ConnId(2));
        let later = lanes.deadline().unwrap();
        assert_eq!(later, now.after(HOLD_TIME_MAX));
        assert_eq!(due(&mut lanes, later), [3]);
        // For a while all go at once.
        assert_eq!(entry(&mut lanes, later), [false, false, false]);
        lanes.completed();
        assert!(due(&mut lanes, later).is_empty());
        let after = later.after(HOLD_PAUSE);
        assert_eq!(entry(&mut lanes, after), [true, false, false]);
    }

    #[test]
    fn replica_that_gets_no_entries_is_not_counted_on() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        entry(&mut lanes, now);
        lanes.completed();
        assert_eq!(due(&mut lanes, now), [3]);
        // Member 1 is demoted, and still tells its state.
        let append = head(20);
        for _ in 0..=HOLD_AFTER {
            lanes.sent(now, ConnId(2), &append);
            lanes.sent(now, ConnId(3), &append);
        }
        assert!(lanes.deadline().is_some());
        for conn in [1, 2] {
            lanes.heard(ConnId(conn));
        }
        let later = lanes.deadline().unwrap();
        assert_eq!(due(&mut lanes, later), [3]);
        let after = later.after(HOLD_PAUSE);
        for conn in [2, 3] {
            assert_eq!(lanes.sent(after, ConnId(conn), &append), Verdict::Go);
        }
    }

    #[test]
    fn two_of_three_and_a_lost_one_hold_nothing() {
        let mut lanes = Lanes::new(2);
        let now = Monotonic(1_000_000_000);
        entry(&mut lanes, now);
        lanes.closed(ConnId(1));
        assert_eq!(due(&mut lanes, now), [3]);
        let append = head(20);
        for conn in [2, 3] {
            assert_eq!(lanes.sent(now, ConnId(conn), &append), Verdict::Go);
        }
    }
}
