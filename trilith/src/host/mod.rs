//! Machines and the loop, wired together: one module a kind of process. A machine's actions are
//! carried out right after the event that caused them; everything leaves in one system call at the
//! end of the loop's turn.

pub(crate) mod engine;
mod probe;
pub(crate) mod process;
pub(crate) mod replica;
pub(crate) mod report;

/// Two collections of actions in turn: one is being carried out while the machine fills the other,
/// so nothing is allocated once both have grown.
#[derive(Debug)]
pub(crate) struct Outbox<A> {
    /// What the machine fills.
    pub(crate) fill: trilith_block::Actions<A>,
    spare: trilith_block::Actions<A>,
}

impl<A> Default for Outbox<A> {
    fn default() -> Self {
        Outbox {
            fill: trilith_block::Actions::new(),
            spare: trilith_block::Actions::new(),
        }
    }
}

impl<A: Copy> Outbox<A> {
    /// What has been filled, to be carried out; the machine fills the other one meanwhile. `None`
    /// when there is nothing. Give it back with [`Outbox::done`].
    pub(crate) fn take(&mut self) -> Option<trilith_block::Actions<A>> {
        if self.fill.is_empty() {
            return None;
        }
        std::mem::swap(&mut self.fill, &mut self.spare);
        Some(std::mem::take(&mut self.spare))
    }

    /// Gives back what has been carried out.
    pub(crate) fn done(&mut self, mut list: trilith_block::Actions<A>) {
        list.clear();
        self.spare = list;
    }
}
