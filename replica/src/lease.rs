//! What this replica has promised to live leaders (5.5): for how long it grants no PREVOTE to
//! anyone else, and what it reports in PROMISE.

use crate::store::LeaseGrant;
use core::time::Duration;
use trilith_block::{Monotonic, Uuid};

/// The lease of the newest leader, and what was left of older leaders' when it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lease {
    leader: Uuid,
    until: Monotonic,
    /// End of the leases of leaders before `leader` that nobody released.
    prior_until: Monotonic,
}

impl Lease {
    /// What is known after a restart: a lease of `leader` (none: of an unknown engine) to `until`.
    pub(crate) fn restored(leader: Uuid, until: Monotonic) -> Lease {
        let prior_until = if leader.is_none() {
            until
        } else {
            Monotonic(0)
        };
        Lease {
            leader,
            until,
            prior_until,
        }
    }

    /// `engine` is alive: it has a lease for `span` from now on.
    pub(crate) fn grant(&mut self, engine: Uuid, now: Monotonic, span: Duration) {
        if self.leader != engine {
            self.prior_until = self.prior_until.max(self.until);
            self.leader = engine;
        }
        self.until = now.after(span);
    }

    /// `engine` is known to be dead, or gives its lease up.
    pub(crate) fn release(&mut self, engine: Uuid) {
        if self.leader == engine {
            self.until = Monotonic(0);
        }
    }

    /// What is left of leases that engines other than `engine` and `dead` may rely on.
    pub(crate) fn left_for_others(&self, now: Monotonic, engine: Uuid, dead: Uuid) -> Duration {
        let own = self.leader == engine || (!dead.is_none() && self.leader == dead);
        let until = if own {
            self.prior_until
        } else {
            self.until.max(self.prior_until)
        };
        until.since(now)
    }

    /// The engine whose lease runs; none when no lease runs, or when that of one before it runs
    /// too: then releasing one engine is not enough.
    pub(crate) fn leader(&self, now: Monotonic) -> Uuid {
        let alone = self.until > now && self.prior_until <= now;
        if alone { self.leader } else { Uuid::NONE }
    }

    /// What is left of all leases.
    pub(crate) fn left(&self, now: Monotonic) -> Duration {
        self.until.max(self.prior_until).since(now)
    }

    /// What to store as the last grant (M14). While an older leader's lease still runs, nobody is
    /// named: a release of the leader must not end that one after a restart.
    pub(crate) fn stored(&self, now: Monotonic) -> LeaseGrant {
        let engine = if self.prior_until > now {
            Uuid::NONE
        } else {
            self.leader
        };
        LeaseGrant {
            until: self.until.max(self.prior_until),
            engine,
        }
    }
}

/// A span in whole milliseconds, rounded up: a lease is never reported too short.
pub(crate) fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid([1; 16]);
    const B: Uuid = Uuid([2; 16]);
    const SPAN: Duration = Duration::from_millis(10);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn a_lease_binds_others_but_not_its_holder_nor_the_heir_of_a_dead_one() {
        let mut lease = Lease::default();
        assert_eq!(lease.left_for_others(at(0), B, Uuid::NONE), Duration::ZERO);
        lease.grant(A, at(0), SPAN);
        assert_eq!(lease.leader(at(9)), A);
        assert_eq!(
            lease.left_for_others(at(4), B, Uuid::NONE),
            Duration::from_millis(6)
        );
        assert_eq!(lease.left_for_others(at(4), A, Uuid::NONE), Duration::ZERO);
        assert_eq!(lease.left_for_others(at(4), B, A), Duration::ZERO);
        assert_eq!(lease.leader(at(10)), Uuid::NONE);
    }

    #[test]
    fn releasing_a_leader_does_not_release_the_one_before_it() {
        let mut lease = Lease::default();
        lease.grant(A, at(0), SPAN);
        lease.grant(B, at(2), SPAN);
        lease.release(B);
        assert_eq!(
            lease.left_for_others(at(4), B, Uuid::NONE),
            Duration::from_millis(6)
        );
        let nobody = LeaseGrant {
            until: at(10),
            engine: Uuid::NONE,
        };
        assert_eq!(lease.stored(at(4)), nobody);
        assert_eq!(lease.stored(at(11)).engine, B);
    }

    #[test]
    fn an_unknown_holder_after_a_restart_binds_everyone() {
        let lease = Lease::restored(Uuid::NONE, at(5));
        assert_eq!(lease.left_for_others(at(1), A, B), Duration::from_millis(4));
    }

    #[test]
    fn milliseconds_are_rounded_up() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(millis(Duration::from_millis(7)), 7);
    }
}
