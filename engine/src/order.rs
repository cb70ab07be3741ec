//! Order between the frontends of one engine. A command of one that reads, decides and then writes
//! (COMPARE AND WRITE, ORWRITE: an *exclusive* command) must not have a write of another in between:
//! the later of the two waits here. Whoever drives the frontends asks before it submits.
//!
//! Turns are given by arrival: a request waits for every earlier one of another frontend that it
//! conflicts with, whether that one is under way or waits itself, so a frontend that never pauses
//! keeps nobody out. Within one frontend order is the frontend's own business, and every other order
//! is that of the volume machine.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use trilith_block::{ByteRange, Op, Request, Tag};

/// What has to be known of the frontends, which are told apart by a number.
pub trait Holders {
    /// The writes of a frontend have to be known, because another one may have exclusive commands.
    fn may_hold_against(&self, at: usize) -> bool;
    /// The request with this tag belongs to an exclusive command that is under way: from the
    /// submission of its read until its write, or its decision not to write, is done with.
    fn is_exclusive(&self, tag: Tag) -> bool;
    /// Whose request a tag is of.
    fn of_tag(&self, tag: Tag) -> Option<usize>;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    at: usize,
    request: Request,
    exclusive: bool,
}

/// Writes and exclusive commands under way, and requests that wait for others to end. There are no
/// more of any than frontends allow themselves requests in flight.
#[derive(Debug, Default)]
pub struct Order {
    /// Writes under way that an exclusive command of another frontend has to wait for, by tag.
    writes: Vec<(Tag, ByteRange)>,
    /// Exclusive commands whose read has gone on. Those that are over are found when somebody asks.
    admitted: Vec<(Tag, ByteRange)>,
    /// Oldest first.
    held: VecDeque<Held>,
    /// Places of the exclusive commands among those held that were looked at; only for its memory.
    passed: Vec<usize>,
}

fn writes(op: Op) -> bool {
    matches!(op, Op::Write | Op::Discard | Op::WriteZeroes)
}

fn overlap(a: ByteRange, b: ByteRange) -> bool {
    let end = |range: ByteRange| range.offset.saturating_add(range.len);
    a.offset < end(b) && b.offset < end(a)
}

impl Held {
    fn conflicts(&self, other: &Held) -> bool {
        (self.exclusive || other.exclusive)
            && self.at != other.at
            && overlap(self.request.range, other.request.range)
    }
}

impl Order {
    /// A request (with its tag as the engine gets it) of the frontend at `at`: given back when its
    /// turn is now, else kept until [`Order::next`] brings it.
    pub fn enter(
        &mut self,
        frontends: &impl Holders,
        at: usize,
        request: Request,
    ) -> Option<Request> {
        let exclusive =
            matches!(request.op, Op::Read | Op::Write) && frontends.is_exclusive(request.tag);
        let known = match request.op {
            Op::Read => exclusive,
            // The write of an exclusive command has had its turn since its read.
            op => writes(op) && !exclusive && frontends.may_hold_against(at),
        };
        if !known {
            return Some(request);
        }
        if exclusive {
            // The same command's part before, which is over.
            self.admitted.retain(|(tag, _)| *tag != request.tag);
        }
        let own = Held {
            at,
            request,
            exclusive,
        };
        if self.is_kept_out(frontends, &own) || self.held.iter().any(|held| held.conflicts(&own)) {
            self.held.push_back(own);
            return None;
        }
        self.admit(own);
        Some(request)
    }

    fn admit(&mut self, own: Held) {
        let (tag, range) = (own.request.tag, own.request.range);
        if own.exclusive {
            self.admitted.push((tag, range));
        } else if let Err(place) = self.writes.binary_search_by_key(&tag, |write| write.0) {
            self.writes.insert(place, (tag, range));
        }
    }

    /// Something under way has to end first.
    fn is_kept_out(&self, frontends: &impl Holders, own: &Held) -> bool {
        let foreign = |tag: Tag, range: ByteRange| {
            overlap(range, own.request.range) && frontends.of_tag(tag) != Some(own.at)
        };
        let mut admitted = self.admitted.iter();
        let mut writes = self.writes.iter();
        admitted.any(|(tag, range)| foreign(*tag, *range) && frontends.is_exclusive(*tag))
            || own.exclusive && writes.any(|(tag, range)| foreign(*tag, *range))
    }

    /// A request has ended. True when others wait, whose turn it may be.
    pub fn leave(&mut self, tag: Tag) -> bool {
        if let Ok(place) = self.writes.binary_search_by_key(&tag, |write| write.0) {
            self.writes.remove(place);
        }
        !self.held.is_empty()
    }

    /// Requests that wait.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// A request whose turn has come: the one that came first among them.
    pub fn next(&mut self, frontends: &impl Holders) -> Option<Request> {
        if self.held.is_empty() {
            return None;
        }
        self.admitted
            .retain(|(tag, _)| frontends.is_exclusive(*tag));
        self.passed.clear();
        for place in 0..self.held.len() {
            let own = self.held[place];
            let waits = self.is_kept_out(frontends, &own)
                || if own.exclusive {
                    self.held.range(..place).any(|held| held.conflicts(&own))
                } else {
                    let mut passed = self.passed.iter();
                    passed.any(|passed| self.held[*passed].conflicts(&own))
                };
            if !waits {
                self.held.remove(place);
                self.admit(own);
                return Some(own.request);
            }
            if own.exclusive {
                self.passed.push(place);
            }
        }
        None
    }

    /// Takes out a request that waits, whether its turn has come or not.
    pub fn give_up(&mut self) -> Option<Request> {
        self.held.pop_front().map(|held| held.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use trilith_block::RequestFlags;

    const NBD: usize = 0;
    const ISCSI: usize = 1;

    /// A tag's top byte says whose it is; these commands of frontend 1 are exclusive.
    #[derive(Default)]
    struct Fake(Vec<Tag>);

    impl Holders for Fake {
        fn may_hold_against(&self, at: usize) -> bool {
            at == NBD
        }

        fn is_exclusive(&self, tag: Tag) -> bool {
            self.0.contains(&tag)
        }

        fn of_tag(&self, tag: Tag) -> Option<usize> {
            usize::try_from(tag.0 >> 56).ok()
        }
    }

    fn request(at: usize, n: u64, op: Op, offset: u64) -> Request {
        Request {
            tag: Tag((at as u64) << 56 | n),
            op,
            range: ByteRange::new(offset, 4096),
            flags: RequestFlags::default(),
            data: None,
        }
    }

    fn below(rng: &mut crate::rng::Rng, end: usize) -> usize {
        usize::try_from(rng.next() % end as u64).unwrap()
    }

    /// An exclusive command at its read.
    fn exclusive(frontends: &mut Fake, n: u64, offset: u64) -> Request {
        let read = request(ISCSI, n, Op::Read, offset);
        frontends.0.push(read.tag);
        read
    }

    fn over(frontends: &mut Fake, request: Request) {
        frontends.0.retain(|tag| *tag != request.tag);
    }

    #[test]
    fn write_of_another_frontend_waits_for_an_exclusive_command_in_its_range() {
        let (mut order, mut frontends) = (Order::default(), Fake::default());
        let read = exclusive(&mut frontends, 1, 4096);
        assert_eq!(order.enter(&frontends, ISCSI, read), Some(read));
        for (op, offset, waits) in [
            (Op::Write, 0, false),
            (Op::Write, 8192, false),
            (Op::Read, 4096, false),
            (Op::Write, 4096, true),
            (Op::Discard, 8191, true),
            (Op::WriteZeroes, 1, true),
        ] {
            let entered = order.enter(&frontends, NBD, request(NBD, offset, op, offset));
            assert_eq!(entered.is_none(), waits, "{op:?} at {offset}");
        }
        assert_eq!(order.held(), 3);
        assert!(order.leave(read.tag), "others wait");
        assert_eq!(order.next(&frontends), None, "its write is to come");
        let own = request(ISCSI, 1, Op::Write, 4096);
        assert_eq!(order.enter(&frontends, ISCSI, own), Some(own));
        assert!(order.leave(own.tag));
        over(&mut frontends, read);
        for offset in [4096, 8191, 1] {
            let next = order.next(&frontends).map(|request| request.range.offset);
            assert_eq!(next, Some(offset), "in the order of arrival");
        }
        assert_eq!((order.next(&frontends), order.held()), (None, 0));
    }

    #[test]
    fn exclusive_command_reads_after_the_writes_that_came_before_it() {
        let (mut order, mut frontends) = (Order::default(), Fake::default());
        let before = request(NBD, 1, Op::Write, 0);
        assert!(order.enter(&frontends, NBD, before).is_some());
        let read = exclusive(&mut frontends, 2, 0);
        assert_eq!(order.enter(&frontends, ISCSI, read), None);
        // What comes later waits for the command, not the command for it.
        let after = request(NBD, 3, Op::Write, 0);
        assert_eq!(order.enter(&frontends, NBD, after), None);
        assert_eq!(order.next(&frontends), None);
        assert!(order.leave(before.tag));
        assert_eq!(order.next(&frontends), Some(read));
        assert_eq!(order.next(&frontends), None);
        over(&mut frontends, read);
        assert!(order.leave(read.tag));
        assert_eq!(order.next(&frontends), Some(after));
        assert!(!order.leave(after.tag));
    }

    #[test]
    fn exclusive_commands_without_a_pause_do_not_keep_a_writer_out() {
        let (mut order, mut frontends) = (Order::default(), Fake::default());
        let first = exclusive(&mut frontends, 1, 0);
        assert!(order.enter(&frontends, ISCSI, first).is_some());
        let write = request(NBD, 2, Op::Write, 0);
        assert_eq!(order.enter(&frontends, NBD, write), None);
        // The next command of the same range is there before the first one is over.
        over(&mut frontends, first);
        let second = exclusive(&mut frontends, 3, 0);
        assert_eq!(order.enter(&frontends, ISCSI, second), None, "came later");
        assert_eq!(order.next(&frontends), Some(write));
        assert_eq!(order.next(&frontends), None);
        order.leave(write.tag);
        assert_eq!(order.next(&frontends), Some(second));
    }

    #[test]
    fn requests_given_up_come_out_in_the_order_of_arrival() {
        let (mut order, mut frontends) = (Order::default(), Fake::default());
        let read = exclusive(&mut frontends, 9, 0);
        assert!(order.enter(&frontends, ISCSI, read).is_some());
        for n in 0..3 {
            let write = request(NBD, n, Op::Write, 0);
            assert_eq!(order.enter(&frontends, NBD, write), None);
        }
        for n in 0..3 {
            let given_up = order.give_up().map(|request| request.tag.0 & 0xff);
            assert_eq!(given_up, Some(n));
        }
        assert_eq!(order.give_up(), None);
    }

    /// Against a model: who arrives, goes on and ends is drawn. Nothing comes in between, every
    /// conflict is served by arrival, and all get their turn.
    #[test]
    fn conflicts_are_served_by_arrival_and_all_get_their_turn() {
        for seed in 0..200u8 {
            let mut rng = crate::rng::Rng::new(&[seed; 32]);
            let (mut order, mut frontends) = (Order::default(), Fake::default());
            // By arrival: request, frontend, it is exclusive.
            let mut waiting: Vec<(Request, usize, bool)> = vec![];
            let mut running: Vec<(Request, usize, bool)> = vec![];
            let conflict = |a: &(Request, usize, bool), b: &(Request, usize, bool)| {
                a.1 != b.1 && (a.2 || b.2) && overlap(a.0.range, b.0.range)
            };
            for n in 1..300 {
                let arrives = n < 200 && rng.next().is_multiple_of(2);
                if arrives {
                    let at = below(&mut rng, 2);
                    let offset = rng.next() % 4 * 2048;
                    let own = if at == ISCSI {
                        (exclusive(&mut frontends, n, offset), at, true)
                    } else {
                        (request(NBD, n, Op::Write, offset), at, false)
                    };
                    let free = !running.iter().chain(&waiting).any(|o| conflict(o, &own));
                    let entered = order.enter(&frontends, at, own.0);
                    assert_eq!(entered.is_some(), free, "seed {seed} request {n}");
                    if free { &mut running } else { &mut waiting }.push(own);
                } else if !running.is_empty() {
                    let gone = running.swap_remove(below(&mut rng, running.len()));
                    over(&mut frontends, gone.0);
                    order.leave(gone.0.tag);
                }
                while let Some(next) = order.next(&frontends) {
                    let place = waiting.iter().position(|w| w.0 == next).unwrap();
                    let own = waiting.remove(place);
                    let mut first = running.iter().chain(&waiting[..place]);
                    assert!(!first.any(|o| conflict(o, &own)), "seed {seed}");
                    running.push(own);
                }
                assert_eq!(order.held(), waiting.len());
                assert!(!running.is_empty() || waiting.is_empty(), "seed {seed}");
            }
        }
    }
}
