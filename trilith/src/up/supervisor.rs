//! Which child runs when: a pure machine. `up` tells it what has happened and does what it asks.
//!
//! A child that ends is started again after a pause that doubles from [`RESTART_PAUSE_MIN`] to
//! [`RESTART_PAUSE_MAX`] and is short again once it has run for [`HEALTHY_AFTER`]. A fenced engine
//! is not started again (M11), while its replicas go on for the engine that took over. Stopping goes engine first, so that it can seal its replicas; then
//! the replicas.

use crate::exit::Exit;
use crate::limits::{HEALTHY_AFTER, RESTART_PAUSE_MAX, RESTART_PAUSE_MIN, STOP_TIME_MAX};
use core::time::Duration;
use trilith_block::Monotonic;

/// Which child.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum ChildId {
    /// A replica, by its member number.
    Replica(usize),
    /// The engine.
    Engine,
}

impl std::fmt::Display for ChildId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChildId::Replica(member) => f.pad(&format!("replica-{member}")),
            ChildId::Engine => f.pad("engine"),
        }
    }
}

/// What the driver shall do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Do {
    /// Start the child; report with [`Supervisor::started`], or [`Supervisor::ended`] if it fails.
    Start(ChildId),
    /// Ask it to stop (a `stop` line and SIGTERM).
    Stop(ChildId),
    /// SIGKILL it.
    Kill(ChildId),
    /// Everything has ended: leave with this status.
    Leave(Exit),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Start it at this time.
    Due(Monotonic),
    /// The driver has been told to start it.
    Starting,
    /// Runs since then.
    Running(Monotonic),
    /// Runs, and has been asked to stop; SIGKILL at this time.
    Stopping(Monotonic),
    /// SIGKILL has been sent.
    Killed,
    /// Ended and stays so.
    Over,
}

#[derive(Clone, Debug)]
struct Child {
    id: ChildId,
    state: State,
    pause: Duration,
    ever_ready: bool,
    restarts: u64,
    /// It has no place any more: it is stopped and stays so.
    retired: bool,
    /// Another replica has got its number, and is started once it has ended.
    succeeded: bool,
}

impl Child {
    fn due(now: Monotonic, id: ChildId) -> Child {
        Child {
            id,
            state: State::Due(now),
            pause: RESTART_PAUSE_MIN,
            ever_ready: false,
            restarts: 0,
            retired: false,
            succeeded: false,
        }
    }

    /// Asks it to stop when it runs and is to stop; ends it when it has taken too long.
    fn stop(&mut self, now: Monotonic, wanted: bool, out: &mut Vec<Do>) {
        match self.state {
            State::Running(_) if wanted => {
                self.state = State::Stopping(now.after(STOP_TIME_MAX));
                out.push(Do::Stop(self.id));
            }
            State::Stopping(until) if until <= now => {
                self.state = State::Killed;
                out.push(Do::Kill(self.id));
            }
            _ => {}
        }
    }
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    children: Vec<Child>,
    stopping: Option<Exit>,
    left: bool,
}

impl Supervisor {
    /// Supervises these replicas and an engine, all due now.
    pub(crate) fn new(now: Monotonic, replicas: impl IntoIterator<Item = usize>) -> Supervisor {
        let replicas = replicas.into_iter().map(ChildId::Replica);
        let children = replicas
            .chain([ChildId::Engine])
            .map(|id| Child::due(now, id))
            .collect();
        Supervisor {
            children,
            stopping: None,
            left: false,
        }
    }

    fn child(&mut self, id: ChildId) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.id == id)
    }

    /// The child's process exists.
    pub(crate) fn started(&mut self, now: Monotonic, id: ChildId) {
        // While everything winds down the next `settle` asks it to stop again.
        if let Some(child) = self.child(id) {
            child.state = State::Running(now);
        }
    }

    /// The child said that it listens.
    pub(crate) fn ready(&mut self, id: ChildId) {
        if let Some(child) = self.child(id) {
            child.ever_ready = true;
        }
    }

    /// The child's process is gone, or could not be started.
    pub(crate) fn ended(&mut self, now: Monotonic, id: ChildId, exit: Exit) {
        let stopping = self.stopping.is_some();
        let Some(child) = self.child(id) else { return };
        if matches!(child.state, State::Running(since) if now.since(since) >= HEALTHY_AFTER) {
            child.pause = RESTART_PAUSE_MIN;
        }
        let hopeless = exit == Exit::Setup && !child.ever_ready;
        if stopping {
            child.state = State::Over;
        } else if child.retired {
            if child.succeeded {
                *child = Child::due(now, id);
            } else {
                child.state = State::Over;
            }
        } else if id == ChildId::Engine && exit == Exit::Fenced {
            // M11: not started again. The replicas go on: the engine that took over needs them.
            child.state = State::Over;
        } else if id == ChildId::Engine && hopeless {
            // Nothing that a restart could mend: the whole command ends with the engine's status.
            child.state = State::Over;
            self.stop(exit);
        } else {
            child.state = State::Due(now.after(child.pause));
            child.pause = (child.pause * 2).min(RESTART_PAUSE_MAX);
            child.restarts += 1;
        }
    }

    /// One more replica, due now. Its number may be that of one that was retired.
    pub(crate) fn add(&mut self, now: Monotonic, member: usize) {
        let id = ChildId::Replica(member);
        self.children
            .retain(|c| c.id != id || c.state != State::Over);
        match self.child(id) {
            Some(child) => child.succeeded = child.retired,
            None => self.children.insert(0, Child::due(now, id)),
        }
    }

    /// A replica has no place any more: it is asked to stop and not started again.
    pub(crate) fn retire(&mut self, member: usize) {
        if let Some(child) = self.child(ChildId::Replica(member)) {
            child.retired = true;
        }
    }

    /// Stop everything, then leave with `exit`. The first call decides the status.
    pub(crate) fn stop(&mut self, exit: Exit) {
        self.stopping.get_or_insert(exit);
    }

    /// True once everything is being stopped.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Restarts of a child so far.
    pub(crate) fn restarts(&self, id: ChildId) -> u64 {
        self.children
            .iter()
            .find(|child| child.id == id)
            .map_or(0, |child| child.restarts)
    }

    /// What is due now.
    pub(crate) fn settle(&mut self, now: Monotonic, out: &mut Vec<Do>) {
        match self.stopping {
            None => self.start_due(now, out),
            Some(exit) => self.wind_down(now, exit, out),
        }
    }

    fn start_due(&mut self, now: Monotonic, out: &mut Vec<Do>) {
        for child in &mut self.children {
            if child.retired && matches!(child.state, State::Due(_)) {
                if !child.succeeded {
                    child.state = State::Over;
                    continue;
                }
                *child = Child::due(now, child.id);
            }
            match child.state {
                State::Due(at) if at <= now => {
                    child.state = State::Starting;
                    out.push(Do::Start(child.id));
                }
                _ => child.stop(now, child.retired, out),
            }
        }
    }

    fn wind_down(&mut self, now: Monotonic, exit: Exit, out: &mut Vec<Do>) {
        for child in &mut self.children {
            if matches!(child.state, State::Due(_)) {
                child.state = State::Over;
            }
        }
        let engine_over = self
            .children
            .iter()
            .all(|child| child.id != ChildId::Engine || child.state == State::Over);
        for child in &mut self.children {
            let turn = child.id == ChildId::Engine || engine_over;
            child.stop(now, turn, out);
        }
        if !self.left && self.children.iter().all(|child| child.state == State::Over) {
            self.left = true;
            out.push(Do::Leave(exit));
        }
    }

    /// When `settle` has something to do at the latest.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        self.children
            .iter()
            .filter_map(|child| match child.state {
                State::Due(at) | State::Stopping(at) => Some(at),
                State::Starting | State::Running(_) | State::Killed | State::Over => None,
            })
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic(millis * 1_000_000)
    }

    fn settle(supervisor: &mut Supervisor, now: u64) -> Vec<Do> {
        let mut out = Vec::new();
        supervisor.settle(at(now), &mut out);
        out
    }

    /// One replica and the engine, both running since time 0.
    fn running() -> Supervisor {
        let mut supervisor = Supervisor::new(at(0), [0]);
        let first = settle(&mut supervisor, 0);
        assert_eq!(
            first,
            [Do::Start(ChildId::Replica(0)), Do::Start(ChildId::Engine)]
        );
        for id in [ChildId::Replica(0), ChildId::Engine] {
            supervisor.started(at(0), id);
            supervisor.ready(id);
        }
        assert_eq!(supervisor.deadline(), None, "nothing is polled");
        supervisor
    }

    #[test]
    fn pause_doubles_up_to_its_maximum_and_is_reset_by_health() {
        let mut supervisor = running();
        let id = ChildId::Replica(0);
        let mut now = 0;
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            supervisor.ended(at(now), id, Exit::Failed);
            assert_eq!(supervisor.deadline(), Some(at(now + pause)));
            assert_eq!(settle(&mut supervisor, now + pause - 1), []);
            now += pause;
            assert_eq!(settle(&mut supervisor, now), [Do::Start(id)]);
            supervisor.started(at(now), id);
        }
        now += 10_000;
        supervisor.ended(at(now), id, Exit::Failed);
        assert_eq!(supervisor.deadline(), Some(at(now + 100)));
        assert_eq!(supervisor.restarts(id), 9);
    }

    #[test]
    fn fenced_engine_is_not_started_again_and_its_replicas_go_on() {
        let mut supervisor = running();
        supervisor.ended(at(5), ChildId::Engine, Exit::Fenced);
        assert_eq!(settle(&mut supervisor, 100_000), []);
        assert_eq!(supervisor.deadline(), None);
        supervisor.stop(Exit::Done);
        assert_eq!(
            settle(&mut supervisor, 100_001),
            [Do::Stop(ChildId::Replica(0))]
        );
        supervisor.ended(at(100_002), ChildId::Replica(0), Exit::Done);
        assert_eq!(settle(&mut supervisor, 100_002), [Do::Leave(Exit::Done)]);
        assert_eq!(settle(&mut supervisor, 100_003), [], "leaves once");
    }

    #[test]
    fn replica_that_cannot_be_set_up_is_tried_again() {
        let mut supervisor = running();
        supervisor.ended(at(5), ChildId::Replica(0), Exit::Setup);
        assert_eq!(
            settle(&mut supervisor, 105),
            [Do::Start(ChildId::Replica(0))]
        );
    }

    #[test]
    fn engine_that_never_listened_and_cannot_be_set_up_ends_everything() {
        let mut supervisor = Supervisor::new(at(0), [0]);
        assert_eq!(settle(&mut supervisor, 0).len(), 2);
        supervisor.started(at(0), ChildId::Engine);
        supervisor.started(at(0), ChildId::Replica(0));
        supervisor.ended(at(1), ChildId::Engine, Exit::Setup);
        assert!(supervisor.is_stopping());
        let mut after_ready = running();
        after_ready.ended(at(1), ChildId::Engine, Exit::Setup);
        assert!(
            !after_ready.is_stopping(),
            "it worked before, so it may work again"
        );
    }

    #[test]
    fn engine_stops_before_the_replicas_and_who_hangs_is_killed() {
        let mut supervisor = running();
        supervisor.stop(Exit::Done);
        supervisor.stop(Exit::Failed);
        assert_eq!(settle(&mut supervisor, 10), [Do::Stop(ChildId::Engine)]);
        assert_eq!(settle(&mut supervisor, 11), []);
        assert_eq!(settle(&mut supervisor, 20_010), [Do::Kill(ChildId::Engine)]);
        supervisor.ended(at(20_011), ChildId::Engine, Exit::Failed);
        assert_eq!(
            settle(&mut supervisor, 20_011),
            [Do::Stop(ChildId::Replica(0))]
        );
        supervisor.ended(at(20_012), ChildId::Replica(0), Exit::Done);
        assert_eq!(settle(&mut supervisor, 20_012), [Do::Leave(Exit::Done)]);
    }

    #[test]
    fn a_retired_replica_is_stopped_for_good_and_its_number_may_be_used_again() {
        let mut supervisor = running();
        supervisor.add(at(5), 3);
        let new = ChildId::Replica(3);
        assert_eq!(settle(&mut supervisor, 5), [Do::Start(new)]);
        supervisor.started(at(5), new);
        let old = ChildId::Replica(0);
        supervisor.retire(0);
        assert_eq!(settle(&mut supervisor, 6), [Do::Stop(old)]);
        assert_eq!(settle(&mut supervisor, 20_006), [Do::Kill(old)]);
        supervisor.ended(at(20_007), old, Exit::Failed);
        assert_eq!(settle(&mut supervisor, 90_000), []);
        assert_eq!(supervisor.deadline(), None);
        supervisor.add(at(90_001), 0);
        assert_eq!(settle(&mut supervisor, 90_001), [Do::Start(old)]);
    }

    #[test]
    fn number_of_a_retired_replica_that_still_stops_is_started_again_after_it() {
        let mut supervisor = running();
        let id = ChildId::Replica(0);
        supervisor.retire(0);
        supervisor.add(at(5), 0);
        assert_eq!(settle(&mut supervisor, 5), [Do::Stop(id)]);
        supervisor.ended(at(9), id, Exit::Done);
        assert_eq!(settle(&mut supervisor, 9), [Do::Start(id)]);
        supervisor.started(at(9), id);
        supervisor.ended(at(10), id, Exit::Failed);
        assert_eq!(settle(&mut supervisor, 90_000), [Do::Start(id)]);
    }

    #[test]
    fn child_that_waits_for_its_restart_is_not_started_while_stopping() {
        let mut supervisor = running();
        supervisor.ended(at(1), ChildId::Engine, Exit::Failed);
        supervisor.stop(Exit::Done);
        assert_eq!(
            settle(&mut supervisor, 500),
            [Do::Stop(ChildId::Replica(0))]
        );
    }
}
