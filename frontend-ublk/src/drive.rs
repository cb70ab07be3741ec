//! The thin part between machine and loop: an action of the machine, carried out.

use crate::server::{UblkAction, UblkEvent};
use trilith_block::Request;
use trilith_runtime::Io;

/// What follows from an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing.
    Done,
    /// The machine is to be told.
    Tell(UblkEvent),
    /// The engine is to be given this.
    Submit(Request),
    /// The device has been let go of.
    Detached,
}

/// Carries out an action on the loop's device. Blocks for a copy of payload at most.
pub fn carry_out(io: &mut Io, action: UblkAction) -> Next {
    match action {
        UblkAction::Fetch(slot) => {
            io.ublk_fetch(slot);
            Next::Done
        }
        UblkAction::Commit(slot, result) => {
            io.ublk_commit(slot, result);
            Next::Done
        }
        UblkAction::Pull(slot, target) => {
            let result = io.ublk_pull(slot, target);
            Next::Tell(UblkEvent::Copied { slot, result })
        }
        UblkAction::Push(slot, source) => {
            let result = io.ublk_push(slot, source);
            Next::Tell(UblkEvent::Copied { slot, result })
        }
        UblkAction::Submit(request) => Next::Submit(request),
        UblkAction::Detach => {
            if !io.ublk_detach() {
                tracing::error!("the kernel has commands of a device that has ended");
            }
            Next::Detached
        }
    }
}
