//! Purpose: everything that touches the operating system on the data path. One thread drives one
//! ring: it receives, sends, reads and writes for the pure machines of the other crates, tells them
//! the time, and owns the memory that payload lives in. The same loop runs on io_uring or on plain
//! system calls (epoll, and a few threads for the disk).
//!
//! Invariants: memory given to the kernel stays mapped and is neither freed nor handed out again
//! until the operation's completion has been reaped, also when its connection is closed or the loop
//! is dropped. At most one receive and one send are in flight per connection, so bytes stay in
//! order. Nothing is polled: an idle loop sleeps in the kernel until its next deadline.
//!
//! Limits: [`limits`].
//!
//! Failure: an operation that fails is an event for the machine that asked for it; setting things
//! up gives a [`RuntimeError`] that names what was tried. Panics are for bugs of the caller only (a
//! buffer used after its release, or touched while the kernel owns it).
//!
//! Start reading at: [`Handler`] and [`Io`] (what a process programs against), then `turn.rs` (the
//! loop itself), `conn.rs` (one connection), `backend` (io_uring and plain), [`Arena`].
#![allow(
    unsafe_code,
    reason = "system calls and the buffer arena: each block does one unsafe operation"
)]

mod address;
mod arena;
mod backend;
mod clock;
mod conn;
mod disk;
mod error;
mod files;
mod handler;
mod hostfs;
mod io;
mod kernel_buf;
pub mod limits;
mod listeners;
mod output;
mod own;
mod secrets;
mod signals;
mod sockets;
mod stats;
mod streams;
mod turn;
mod ublk;
mod waker;
mod words;

pub use address::Address;
pub use arena::{Arena, ArenaConfig, Share};
pub use backend::Backend;
pub use clock::{now, unix_seconds};
pub use disk::{DiskDone, DiskOp, DiskRequest, FileId};
pub use error::{Errno, RuntimeError};
pub use files::{DataFile, FileKind, OpenFile};
pub use handler::{Handler, Signal};
pub use hostfs::{Space, boot_id, free_space, is_memory_backed, pick_window_dir};
pub use io::{Io, ListenerId};
pub use secrets::{random_bytes, read_secret, replace_file, write_secret};
pub use sockets::activated_listeners;
pub use stats::Stats;
pub use turn::{Loop, LoopConfig};
pub use ublk::{UblkDescriptor, UblkDevice, UblkFetched, UblkShape, UblkSlot};
pub use waker::{Message, WakeError, Waker};
pub use words::{HeapWords, MappedWords};
