//! What a process gives to the loop: its machines, wired together.

use crate::disk::DiskDone;
use crate::io::{Io, ListenerId};
use crate::ublk::UblkFetched;
use crate::waker::Message;
use trilith_block::{ConnId, Monotonic, StreamEvent, Want};

/// A signal that can be asked for with [`Io::catch_signals`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGHUP.
    Hangup,
    /// SIGCHLD.
    Child,
    /// SIGUSR1.
    User1,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 5] = [
        Signal::Terminate,
        Signal::Interrupt,
        Signal::Hangup,
        Signal::Child,
        Signal::User1,
    ];
}

/// Routes events to machines and carries out their actions on [`Io`], from within any callback.
///
/// Per turn: all callbacks for what has happened, then `settle`, repeated while that brings more
/// to deliver, then one system call. Nothing here may block.
pub trait Handler {
    /// A connection has come in by `listener`; its `Opened` follows. To close it now is allowed.
    fn accepted(&mut self, io: &mut Io, listener: ListenerId, conn: ConnId);

    /// Something on a connection. `Closed` is the last event of each connection, also of a dial
    /// that failed.
    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>);

    /// What the connection wants to receive next, with the contract of
    /// [`trilith_block::Stream::want`].
    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want;

    /// A disk request has ended.
    fn disk(&mut self, io: &mut Io, done: DiskDone);

    /// After each batch of events, and when the deadline has passed.
    fn settle(&mut self, io: &mut Io, now: Monotonic);

    /// When `settle` wants to be called at the latest. `None`: never.
    fn deadline(&self) -> Option<Monotonic>;

    /// A signal asked for with [`Io::catch_signals`].
    fn signal(&mut self, io: &mut Io, signal: Signal) {
        let _ = (io, signal);
    }

    /// A command of the ublk device has come back: see [`Io::ublk_fetch`].
    fn ublk(&mut self, io: &mut Io, fetched: UblkFetched) {
        let _ = (io, fetched);
    }

    /// A message from another thread.
    fn message(&mut self, io: &mut Io, message: Message) {
        let _ = (io, message);
    }
}
