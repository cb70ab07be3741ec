//! How other threads reach the loop: a bounded channel of boxed messages and an eventfd.

use crate::error::RuntimeError;
use crate::limits::MESSAGES_MAX;
use core::any::Any;
use core::fmt;
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What another thread gives to the loop; the handler downcasts it.
pub type Message = Box<dyn Any + Send>;

/// Why a message was not taken; it is given back.
pub enum WakeError {
    /// The loop has [`MESSAGES_MAX`] messages waiting.
    Full(Message),
    /// The loop is gone.
    Gone(Message),
}

impl fmt::Debug for WakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WakeError::Full(_) => "Full",
            WakeError::Gone(_) => "Gone",
        })
    }
}

/// Sends messages to a loop from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    sender: Sender<Message>,
    event: Arc<OwnedFd>,
}

impl Waker {
    /// Hands over a message; it reaches [`crate::Handler::message`] on the loop's thread. Does not
    /// block.
    ///
    /// # Errors
    /// When the loop has too many waiting or is gone.
    pub fn send(&self, message: Message) -> Result<(), WakeError> {
        self.sender.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => WakeError::Full(message),
            TrySendError::Disconnected(message) => WakeError::Gone(message),
        })?;
        ring(&self.event);
        Ok(())
    }
}

/// The loop's end.
#[derive(Debug)]
pub(crate) struct WakeEnd {
    pub(crate) receiver: Receiver<Message>,
    pub(crate) event: Arc<OwnedFd>,
}

pub(crate) fn waker() -> Result<(Waker, WakeEnd), RuntimeError> {
    let (sender, receiver) = bounded(MESSAGES_MAX);
    let event = Arc::new(new_event()?);
    Ok((
        Waker {
            sender,
            event: Arc::clone(&event),
        },
        WakeEnd { receiver, event },
    ))
}

pub(crate) fn new_event() -> Result<OwnedFd, RuntimeError> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| RuntimeError::new("make an eventfd", error))
}

/// Makes an eventfd readable. It cannot fail but for a full counter, which is readable as well.
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel's counter is in the host's order"
)]
pub(crate) fn ring(event: &OwnedFd) {
    if let Err(error) = rustix::io::write(event, &1u64.to_ne_bytes()) {
        tracing::trace!(%error, "eventfd is full already");
    }
}

/// Makes it unreadable again.
pub(crate) fn silence(event: &OwnedFd) {
    let mut count = [0; 8];
    if let Err(error) = rustix::io::read(event, &mut count) {
        tracing::trace!(%error, "eventfd was silent already");
    }
}
