//! The device's life as the engine's process sees it, with a device that only notes what it is told.

use super::*;
use std::cell::RefCell;
use std::rc::Rc;
use trilith_frontend_ublk::ControlError;
use trilith_runtime::{ArenaConfig, Loop, LoopConfig, UblkDescriptor, UblkFetched, UblkSlot};

type Orders = Rc<RefCell<Vec<&'static str>>>;

#[derive(Debug, Default)]
struct Fake(Orders);

impl Hand for Fake {
    fn open(&self) {
        self.0.borrow_mut().push("open");
    }

    fn take_over(&self) {
        self.0.borrow_mut().push("take over");
    }

    fn stop(&self) {
        self.0.borrow_mut().push("stop");
    }

    fn remove(&self) {
        self.0.borrow_mut().push("remove");
    }
}

const LOSS: Mode = Mode::Waiting(Waiting::LossAccepted);

struct Rig {
    ublk: UblkFrontend,
    orders: Orders,
    turns: Loop,
}

impl Rig {
    fn new(inherits: bool) -> Rig {
        let arena = ArenaConfig {
            budget_bytes: 1 << 20,
            huge_pages: false,
        };
        let config = LoopConfig {
            backend: Backend::Plain,
            arena,
            ..LoopConfig::default()
        };
        let orders = Orders::default();
        let device = Box::new(Fake(orders.clone()));
        Rig {
            ublk: UblkFrontend::of(device, 1 << 30, inherits),
            orders,
            turns: Loop::new(config).unwrap(),
        }
    }

    fn orders(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.orders.borrow_mut())
    }

    fn look(&mut self, mode: Mode) -> Vec<&'static str> {
        assert!(self.ublk.look(Monotonic(1), mode));
        self.orders()
    }

    fn news(&mut self, news: News) -> Turn {
        let alone = Supervisor::default();
        self.ublk.news(self.turns.io(), news, alone)
    }

    fn live(&mut self) {
        self.look(Mode::Healthy);
        self.tell(UblkEvent::Attached {
            queues: 1,
            depth: 2,
        });
        self.news(News::Live {
            number: 0,
            recovered: false,
        });
        self.actions();
    }

    fn tell(&mut self, event: UblkEvent) {
        self.ublk.tell(Monotonic(1), event, self.turns.io().arena());
    }

    /// A write of the kernel's.
    fn write(&mut self, tag: u16, sectors: u32) {
        self.tell(UblkEvent::Fetched(UblkFetched {
            slot: UblkSlot { queue: 0, tag },
            result: Ok(UblkDescriptor {
                op_flags: 1,
                sectors,
                start_sector: 0,
            }),
        }));
    }

    fn actions(&mut self) -> Vec<UblkAction> {
        let list = self.ublk.actions.take();
        list.map_or_else(Vec::new, |list| list.list().to_vec())
    }

    fn phase(&self) -> Phase {
        self.ublk.phase
    }
}

fn failed() -> News {
    News::Failed {
        error: ControlError::NoDriver,
        attached: false,
    }
}

#[test]
fn device_is_made_once_the_volume_can_be_written() {
    let mut rig = Rig::new(true);
    for mode in [
        Mode::Waiting(Waiting::Quorum),
        Mode::ReadOnlyLease,
        Mode::Stopping,
    ] {
        assert!(rig.look(mode).is_empty(), "{mode:?}");
    }
    assert_eq!(rig.look(Mode::Degraded), ["open"]);
    assert!(rig.look(Mode::Healthy).is_empty(), "it is on its way");
    rig.news(News::Live {
        number: 4,
        recovered: true,
    });
    assert_eq!(rig.ublk.node().as_deref(), Some("/dev/ublkb4"));
    assert_eq!(rig.ublk.state(), "live, taken over");
}

#[test]
fn what_a_dead_engine_left_is_taken_over_before_a_loss_is_accepted() {
    let mut rig = Rig::new(true);
    assert_eq!(rig.look(LOSS), ["take over"]);
    assert_eq!(rig.news(News::Nothing), Turn::Stay);
    assert!(rig.look(LOSS).is_empty(), "there is nothing");
    assert_eq!(rig.look(Mode::Healthy), ["open"]);

    let mut fresh = Rig::new(false);
    assert!(fresh.look(LOSS).is_empty(), "nobody is bound to the past");
}

#[test]
fn opening_that_failed_is_tried_again_after_a_while_or_when_asked() {
    let mut rig = Rig::new(false);
    rig.look(Mode::Healthy);
    rig.news(failed());
    assert!(rig.ublk.state().starts_with("failed: "));
    assert!(rig.look(Mode::Healthy).is_empty(), "too early");
    let retry = rig.ublk.deadline().unwrap();
    assert!(rig.ublk.look(retry, Mode::Healthy));
    assert_eq!(rig.orders(), ["open"]);
    assert!(!rig.ublk.open_now(), "it is on its way already");
    rig.news(failed());
    assert!(rig.ublk.open_now());
    assert_eq!(rig.orders(), ["open"]);
}

#[test]
fn slots_that_the_kernel_keeps_after_a_failure_want_a_new_process() {
    let mut rig = Rig::new(false);
    rig.look(Mode::Healthy);
    rig.tell(UblkEvent::Attached {
        queues: 1,
        depth: 1,
    });
    rig.news(failed());
    let retry = rig.ublk.deadline().unwrap();
    assert!(!rig.ublk.look(retry, Mode::Healthy));
    assert!(!rig.ublk.open_now());
}

#[test]
fn stop_waits_for_the_device_to_go() {
    let mut rig = Rig::new(false);
    rig.live();
    let alone = Supervisor::default();
    rig.orders();
    assert!(rig.ublk.begin_stop(rig.turns.io(), alone));
    assert_eq!(rig.orders(), ["stop"]);
    assert!(rig.ublk.is_leaving());
    assert_eq!(rig.news(News::Gone), Turn::Left);
    assert_eq!(rig.phase(), Phase::Over);
    assert!(rig.look(Mode::Healthy).is_empty(), "for ever");
}

#[test]
fn stop_without_a_device_waits_for_nothing() {
    let mut rig = Rig::new(false);
    let alone = Supervisor::default();
    assert!(!rig.ublk.begin_stop(rig.turns.io(), alone));
    assert!(rig.orders().is_empty());
}

#[test]
fn device_in_use_is_left_with_what_it_asked_for() {
    let mut rig = Rig::new(false);
    rig.live();
    rig.write(0, 2048);
    rig.write(1, 8);
    rig.actions();
    let alone = Supervisor::default();
    rig.ublk.begin_stop(rig.turns.io(), alone);
    let kept = News::Kept {
        number: 0,
        why: "it is in use".to_owned(),
    };
    assert_eq!(rig.news(kept), Turn::Left);
    assert!(rig.actions().is_empty(), "nothing fails");
}

#[test]
fn dead_supervisor_leaves_the_device_to_the_next_engine() {
    let mut rig = Rig::new(false);
    rig.live();
    rig.orders();
    let dead = Supervisor::of(u32::MAX);
    assert!(!rig.ublk.begin_stop(rig.turns.io(), dead));
    assert!(rig.orders().is_empty());
    assert_eq!(rig.phase(), Phase::Over);
}

#[test]
fn fenced_engine_removes_its_device_and_what_it_never_took_over() {
    for opened in [true, false] {
        let mut rig = Rig::new(true);
        if opened {
            rig.live();
            rig.write(0, 2048);
            rig.write(1, 8);
            rig.actions();
            rig.orders();
        }
        rig.ublk.drop_device(rig.turns.io());
        assert_eq!(rig.orders(), ["remove"]);
        let failed = rig.actions();
        assert_eq!(failed.len(), usize::from(opened), "{failed:?}");
        assert!(rig.ublk.is_leaving());
        assert_eq!(rig.news(News::Gone), Turn::Left);
        rig.ublk.drop_device(rig.turns.io());
        assert!(rig.orders().is_empty(), "once");
    }
}

#[test]
fn write_that_waits_for_memory_is_not_done_after_a_loss_was_accepted() {
    let mut rig = Rig::new(false);
    rig.live();
    // The first takes all the memory there is.
    rig.write(0, 2048);
    rig.write(1, 8);
    rig.actions();
    let now = Monotonic(1);
    rig.ublk.accept_loss(now, rig.turns.io().arena());
    let slot = UblkSlot { queue: 0, tag: 1 };
    assert_eq!(
        rig.actions(),
        [UblkAction::Commit(
            slot,
            -rustix::io::Errno::IO.raw_os_error()
        )]
    );
}
