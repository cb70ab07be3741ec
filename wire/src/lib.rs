//! Purpose: the frames between an engine and its replicas: their layout, what each one means, their
//! checksums, an incremental decoder, and the challenge and response that opens a session.
//!
//! Invariants: what decodes is within its limits; `decode(encode(m)) == m`; unknown types, wrong
//! lengths and wrong checksums are errors, never panics.
//!
//! Limits: [`limits`].
//!
//! Failure: a [`WireError`] ends the session (the stream cannot be trusted any more), never the
//! process.
//!
//! Start reading at: [`message`], then [`frame`], then [`auth`]. Byte offsets are in
//! `docs/format/wire.md`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod auth;
mod convert;
pub mod digest;
pub mod frame;
pub mod kinds;
pub mod limits;
pub mod message;
pub mod records;
pub mod state;

pub use frame::{Decoder, Encoder, Header, WireError, kind_of};
pub use message::{
    Append, EntryOp, EntryStatus, Hello, Kind, MapKind, Message, Prevote, Reason, Vote,
};
pub use records::{ChunkRecord, SlotStatus, WindowRecord};
pub use state::{ReplicaState, StateFlags};
