//! The machine's ways, one at a time.

use super::rig::{Rig, descriptor, read, slot, write};
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::server::{UblkAction, UblkEvent};
use trilith_block::{Buffers, ErrorKind, Monotonic, Op, Outcome, Request};
use trilith_runtime::Errno;

fn submitted(rig: &mut Rig) -> Request {
    match rig.one() {
        UblkAction::Submit(request) => request,
        other => panic!("expected a request, found {other:?}"),
    }
}

#[test]
fn every_slot_is_fetched_once() {
    let mut rig = Rig::new(1 << 20);
    rig.step(UblkEvent::Attached {
        queues: 2,
        depth: 3,
    });
    let mut slots: Vec<_> = rig
        .take()
        .into_iter()
        .map(|action| match action {
            UblkAction::Fetch(slot) => (slot.queue, slot.tag),
            other => panic!("{other:?}"),
        })
        .collect();
    slots.dedup();
    assert_eq!(slots, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
}

#[test]
fn write_is_pulled_then_served_then_committed() {
    let mut rig = Rig::attached(1, 4);
    let at = slot(0, 2);
    rig.request(at, write(8, 8));
    let UblkAction::Pull(pulled, target) = rig.one() else {
        panic!("payload first");
    };
    assert_eq!((pulled, target.len), (at, 4096));
    rig.copied(at, Ok(()));
    let request = submitted(&mut rig);
    assert_eq!((request.op, request.data), (Op::Write, Some(target)));
    assert!(!request.flags.fua);
    rig.done(request);
    assert_eq!(rig.one(), UblkAction::Commit(at, 4096));
    assert_eq!(rig.used(), 0);
}

#[test]
fn read_is_pushed_before_it_is_committed() {
    let mut rig = Rig::attached(1, 4);
    let at = slot(0, 1);
    rig.request(at, read(0, 2));
    let request = submitted(&mut rig);
    assert_eq!((request.op, request.data), (Op::Read, None));
    rig.done(request);
    let UblkAction::Push(pushed, source) = rig.one() else {
        panic!("data first");
    };
    assert_eq!((pushed, source.len), (at, 1024));
    rig.copied(at, Ok(()));
    assert_eq!(rig.one(), UblkAction::Commit(at, 1024));
    assert_eq!(rig.used(), 0);
}

#[test]
fn flush_discard_and_zeroes_have_no_payload() {
    let mut rig = Rig::attached(1, 1);
    for (number, op) in [(2, Op::Flush), (3, Op::Discard), (5, Op::WriteZeroes)] {
        rig.request(slot(0, 0), descriptor(number, 0, 128));
        let request = submitted(&mut rig);
        assert_eq!((request.op, request.data), (op, None));
        rig.done(request);
        assert_eq!(rig.one(), UblkAction::Commit(slot(0, 0), 0));
    }
}

#[test]
fn failures_of_engine_and_copies_become_error_numbers() {
    let mut rig = Rig::attached(1, 1);
    let at = slot(0, 0);
    rig.request(at, read(0, 8));
    let request = submitted(&mut rig);
    rig.complete(request, Err(ErrorKind::Io));
    assert_eq!(rig.one(), UblkAction::Commit(at, -libc::EIO));

    rig.request(at, write(0, 8));
    rig.take();
    rig.copied(at, Err(Errno(libc::EFAULT)));
    assert_eq!(rig.one(), UblkAction::Commit(at, -libc::EFAULT));

    rig.request(at, read(0, 8));
    let request = submitted(&mut rig);
    rig.done(request);
    rig.take();
    rig.copied(at, Err(Errno(libc::EFAULT)));
    assert_eq!(rig.one(), UblkAction::Commit(at, -libc::EFAULT));
    assert_eq!(rig.used(), 0, "nothing is kept of failed requests");
    assert_eq!(rig.server.status().requests_failed, 3);
    assert_eq!(rig.server.status().requests_in_flight, 0);
}

#[test]
fn answer_of_another_length_or_kind_is_an_error() {
    let mut rig = Rig::attached(1, 1);
    let at = slot(0, 0);
    rig.request(at, read(0, 8));
    let request = submitted(&mut rig);
    let short = rig.arena.alloc(512).unwrap();
    rig.complete(request, Ok(Outcome::Data(short)));
    assert_eq!(rig.one(), UblkAction::Commit(at, -libc::EIO));
    rig.request(at, read(0, 8));
    let request = submitted(&mut rig);
    rig.complete(request, Ok(Outcome::Done));
    assert_eq!(rig.one(), UblkAction::Commit(at, -libc::EIO));
    assert_eq!(rig.used(), 0);
}

#[test]
fn nonsense_is_refused_without_the_engine() {
    let mut rig = Rig::attached(1, 1);
    rig.request(slot(0, 0), descriptor(11, 0, 8));
    assert_eq!(rig.one(), UblkAction::Commit(slot(0, 0), -libc::EOPNOTSUPP));
}

/// A write has taken all the memory there is.
fn full_arena() -> Rig {
    let mut rig = Rig::new(1 << 20);
    rig.step(UblkEvent::Attached {
        queues: 1,
        depth: 4,
    });
    rig.take();
    rig.request(slot(0, 0), write(0, 2048));
    rig.take();
    rig
}

#[test]
fn writes_wait_for_memory_in_their_order() {
    let mut rig = full_arena();
    rig.request(slot(0, 1), write(0, 8));
    rig.request(slot(0, 2), write(0, 8));
    rig.settle();
    assert!(rig.take().is_empty(), "the arena is full");
    assert_eq!(rig.server.status().writes_waiting, 2);
    let retry = trilith_block::Machine::deadline(&rig.server);
    assert!(retry.is_some_and(|at| at > Monotonic(1)), "it asks again");
    rig.copied(slot(0, 0), Err(Errno(libc::EIO)));
    rig.take();
    rig.settle();
    let order: Vec<_> = rig
        .take()
        .into_iter()
        .map(|action| match action {
            UblkAction::Pull(slot, _) => slot.tag,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, [1, 2]);
    assert_eq!(trilith_block::Machine::deadline(&rig.server), None);
}

#[test]
fn writes_that_wait_for_memory_fail_when_a_loss_is_accepted() {
    let mut rig = full_arena();
    rig.copied(slot(0, 0), Ok(()));
    let with_engine = submitted(&mut rig);
    rig.request(slot(0, 1), write(0, 8));
    rig.request(slot(0, 2), write(0, 8));
    assert!(rig.take().is_empty(), "the arena is full");
    rig.step(UblkEvent::LossAccepted);
    let eio = |tag| UblkAction::Commit(slot(0, tag), -libc::EIO);
    assert_eq!(rig.take(), [eio(1), eio(2)]);
    // The engine ends its own, and the memory is free: nothing of before comes now.
    rig.complete(with_engine, Err(ErrorKind::Io));
    assert_eq!(rig.take(), [eio(0)]);
    rig.settle();
    assert!(rig.take().is_empty());
    assert_eq!(rig.server.status().writes_waiting, 0);
    // What comes from now on is served.
    rig.request(slot(0, 1), write(0, 8));
    assert!(matches!(rig.one(), UblkAction::Pull(at, _) if at == slot(0, 1)));
}

#[test]
fn payload_that_is_on_its_way_in_when_a_loss_is_accepted_does_not_reach_the_engine() {
    let mut rig = Rig::attached(1, 2);
    let at = slot(0, 0);
    rig.request(at, write(0, 8));
    rig.take();
    rig.step(UblkEvent::LossAccepted);
    assert!(rig.take().is_empty(), "the kernel's pages are being read");
    rig.copied(at, Ok(()));
    assert_eq!(rig.one(), UblkAction::Commit(at, -libc::EIO));
    assert_eq!(rig.used(), 0);
}

#[test]
fn payload_of_writes_stays_below_its_limit() {
    let mut rig = Rig::attached(1, 128);
    let most = PAYLOAD_BYTES_MAX >> 20;
    for tag in 0..64 {
        rig.request(slot(0, tag), write(0, 2048));
    }
    assert_eq!(rig.take().len() as u64, most);
    rig.copied(slot(0, 0), Ok(()));
    let request = submitted(&mut rig);
    rig.done(request);
    assert_eq!(rig.one(), UblkAction::Commit(slot(0, 0), 1 << 20));
    rig.settle();
    assert!(matches!(rig.one(), UblkAction::Pull(at, _) if at == slot(0, 32)));
}

#[test]
fn device_is_let_go_of_when_the_last_slot_has_ended() {
    let mut rig = Rig::attached(1, 2);
    rig.request(slot(0, 0), read(0, 8));
    let request = submitted(&mut rig);
    rig.end_slot(slot(0, 1), libc::ENODEV);
    assert!(rig.take().is_empty());
    rig.done(request);
    rig.copied(slot(0, 0), Err(Errno(libc::EACCES)));
    rig.take();
    rig.end_slot(slot(0, 0), libc::ENODEV);
    assert_eq!(rig.one(), UblkAction::Detach);
    assert!(!rig.server.is_attached());
    assert_eq!(rig.server.status().broken, None);
    let data = rig.arena.alloc(4096).unwrap();
    rig.stray(0, data);
    assert!(rig.take().is_empty());
    assert_eq!(
        rig.used(),
        0,
        "what comes for a device that is gone is released"
    );
    rig.step(UblkEvent::Attached {
        queues: 1,
        depth: 1,
    });
    assert_eq!(rig.one(), UblkAction::Fetch(slot(0, 0)));
}

#[test]
fn slot_that_ends_for_another_reason_is_told() {
    let mut rig = Rig::attached(1, 1);
    rig.end_slot(slot(0, 0), libc::EINVAL);
    assert_eq!(rig.one(), UblkAction::Detach);
    assert_eq!(rig.server.status().broken, Some(Errno(libc::EINVAL)));
}

#[test]
fn frozen_machine_fails_nothing_and_commits_what_is_done() {
    let mut rig = Rig::attached(1, 4);
    rig.request(slot(0, 0), read(0, 8));
    let failing = submitted(&mut rig);
    rig.request(slot(0, 1), descriptor(2, 0, 0));
    let flush = submitted(&mut rig);
    rig.request(slot(0, 2), write(0, 8));
    rig.take();
    rig.step(UblkEvent::Freeze);
    rig.copied(slot(0, 2), Ok(()));
    rig.complete(failing, Err(ErrorKind::Fenced));
    rig.request(slot(0, 3), read(0, 8));
    assert!(rig.take().is_empty(), "the next server answers these");
    rig.done(flush);
    assert_eq!(rig.one(), UblkAction::Commit(slot(0, 1), 0));
    assert_eq!(rig.used(), 0);
    rig.step(UblkEvent::Fail);
    assert_eq!(rig.take().len(), 3, "unless there is none");
}

#[test]
fn failing_machine_refuses_what_is_there_and_what_comes() {
    let mut rig = Rig::new(1 << 20);
    rig.step(UblkEvent::Attached {
        queues: 1,
        depth: 3,
    });
    rig.take();
    rig.request(slot(0, 0), write(0, 2048));
    rig.request(slot(0, 1), write(0, 8));
    rig.take();
    rig.step(UblkEvent::Fail);
    assert_eq!(rig.one(), UblkAction::Commit(slot(0, 1), -libc::EIO));
    rig.copied(slot(0, 0), Ok(()));
    assert_eq!(rig.one(), UblkAction::Commit(slot(0, 0), -libc::EIO));
    rig.request(slot(0, 2), read(0, 8));
    assert_eq!(rig.one(), UblkAction::Commit(slot(0, 2), -libc::EIO));
    assert_eq!(rig.used(), 0);
}
