//! Order between frontends. A command of one that reads, decides and then writes (COMPARE AND
//! WRITE, ORWRITE) must not have a write of another in between: the later of the two waits here.
//! Within one frontend that is the frontend's own business, and every other order is the engine's.

use std::collections::{HashMap, VecDeque};
use trilith_block::{ByteRange, Op, Request, Tag};

/// What has to be known of the frontends, which are told apart by a number.
pub(super) trait Holders {
    /// The writes of a frontend have to be known, because another one may hold ranges.
    fn may_hold_against(&self, at: usize) -> bool;
    /// A frontend other than that at `at` holds a part of the range.
    fn hold_against(&self, at: usize, range: ByteRange) -> bool;
    /// The frontend at `at` holds a part of the range.
    fn holds(&self, at: usize, range: ByteRange) -> bool;
    /// Whose request a tag is of.
    fn of_tag(&self, tag: Tag) -> Option<usize>;
}

/// Writes under way, and requests that wait for others to end. There are no more of either than
/// frontends allow themselves requests in flight.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Writes that an exclusive command of another frontend has to wait for.
    writes: HashMap<Tag, ByteRange>,
    /// Oldest first.
    held: VecDeque<(usize, Request)>,
}

fn writes(op: Op) -> bool {
    matches!(op, Op::Write | Op::Discard | Op::WriteZeroes)
}

fn overlap(a: ByteRange, b: ByteRange) -> bool {
    let end = |range: ByteRange| range.offset.saturating_add(range.len);
    a.offset < end(b) && b.offset < end(a)
}

impl Order {
    /// A request (with its tag as the engine gets it) of the frontend at `at`: given back when its
    /// turn is now, else kept until [`Order::next`] brings it.
    pub(super) fn enter(
        &mut self,
        frontends: &impl Holders,
        at: usize,
        request: Request,
    ) -> Option<Request> {
        if self.must_wait(frontends, at, &request) {
            self.held.push_back((at, request));
            return None;
        }
        if writes(request.op) && frontends.may_hold_against(at) {
            self.writes.insert(request.tag, request.range);
        }
        Some(request)
    }

    fn must_wait(&self, frontends: &impl Holders, at: usize, request: &Request) -> bool {
        if writes(request.op) {
            return frontends.hold_against(at, request.range);
        }
        // The read of an exclusive command sees every write that came before it.
        request.op == Op::Read
            && !self.writes.is_empty()
            && frontends.holds(at, request.range)
            && self.writes.iter().any(|(tag, range)| {
                frontends.of_tag(*tag) != Some(at) && overlap(*range, request.range)
            })
    }

    /// A request has ended. True when others wait, whose turn it may be.
    pub(super) fn leave(&mut self, tag: Tag) -> bool {
        if !self.writes.is_empty() {
            self.writes.remove(&tag);
        }
        !self.held.is_empty()
    }

    /// Requests that wait.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// A request whose turn has come.
    pub(super) fn next(&mut self, frontends: &impl Holders) -> Option<Request> {
        for index in 0..self.held.len() {
            let (at, request) = self.held[index];
            if self.must_wait(frontends, at, &request) {
                continue;
            }
            self.held.remove(index);
            return self.enter(frontends, at, request);
        }
        None
    }

    /// Takes out a request that waits, whether its turn has come or not.
    pub(super) fn give_up(&mut self) -> Option<Request> {
        self.held.pop_front().map(|(_, request)| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_block::RequestFlags;

    const NBD: usize = 0;
    const ISCSI: usize = 1;

    /// Frontend 1 holds these ranges; a tag's top byte says whose it is.
    struct Fake(Vec<ByteRange>);

    impl Holders for Fake {
        fn may_hold_against(&self, at: usize) -> bool {
            at == NBD
        }

        fn hold_against(&self, at: usize, range: ByteRange) -> bool {
            at == NBD && self.holds(ISCSI, range)
        }

        fn holds(&self, at: usize, range: ByteRange) -> bool {
            at == ISCSI && self.0.iter().any(|held| overlap(*held, range))
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

    #[test]
    fn write_of_another_frontend_waits_for_an_exclusive_command_in_its_range() {
        let mut order = Order::default();
        let mut frontends = Fake(vec![ByteRange::new(4096, 4096)]);
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
        assert_eq!(order.next(&frontends), None);
        // The command's own write does not wait for itself.
        let own = request(ISCSI, 1, Op::Write, 4096);
        assert_eq!(order.enter(&frontends, ISCSI, own), Some(own));
        frontends.0.clear();
        assert!(order.leave(own.tag), "others wait");
        let offsets = [4096, 8191, 1];
        for offset in offsets {
            let next = order.next(&frontends).map(|request| request.range.offset);
            assert_eq!(next, Some(offset), "in the order of arrival");
        }
        assert_eq!((order.next(&frontends), order.held()), (None, 0));
    }

    #[test]
    fn exclusive_command_reads_after_the_writes_that_came_before_it() {
        let mut order = Order::default();
        let mut frontends = Fake(Vec::new());
        let before = request(NBD, 1, Op::Write, 0);
        assert!(order.enter(&frontends, NBD, before).is_some());
        frontends.0.push(ByteRange::new(0, 4096));
        let read = request(ISCSI, 2, Op::Read, 0);
        assert_eq!(order.enter(&frontends, ISCSI, read), None);
        // What comes later waits for the command, not the command for it.
        let after = request(NBD, 3, Op::Write, 0);
        assert_eq!(order.enter(&frontends, NBD, after), None);
        assert_eq!(order.next(&frontends), None);
        assert!(order.leave(before.tag));
        assert_eq!(order.next(&frontends), Some(read));
        assert_eq!(order.next(&frontends), None);
        frontends.0.clear();
        assert!(order.leave(read.tag));
        assert_eq!(order.next(&frontends), Some(after));
        assert!(!order.leave(after.tag));
    }

    #[test]
    fn requests_given_up_come_out_in_the_order_of_arrival() {
        let mut order = Order::default();
        let frontends = Fake(vec![ByteRange::new(0, 1 << 20)]);
        for n in 0..3 {
            assert_eq!(
                order.enter(&frontends, NBD, request(NBD, n, Op::Write, 0)),
                None
            );
        }
        for n in 0..3 {
            let given_up = order.give_up().map(|request| request.tag.0 & 0xff);
            assert_eq!(given_up, Some(n));
        }
        assert_eq!(order.give_up(), None);
    }
}
