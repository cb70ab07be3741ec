//! Purpose: one replica of a volume. It takes sessions of engines, votes, keeps the volume's blocks
//! and says of which entries it holds them. [`Replica`] is a pure machine: bytes of connections and
//! disk completions in, frames and disk operations out. [`store`] is what it keeps on disk.
//!
//! Invariants (names as in `docs/protocol.md`): one vote per term, durable before it is told (V1,
//! I2); nothing of an older session reaches the device after PROMISE (I3); an answer never precedes
//! the completion of what it promises; entries of a stream are taken in idx order without gaps;
//! every buffer has one owner and is given back.
//!
//! Limits: [`limits`], and those of the store.
//!
//! Failure: a peer that breaks the protocol loses its session. A failed flush or metadata write is
//! final (F2): sessions are closed and [`Action::Fatal`] asks for a new process, which comes up
//! tainted. A failed data write fails that entry only.
//!
//! A witness (7.1) is this machine with a store that holds no data: it votes, and keeps what in-sync
//! sets there were (`witness`).
//!
//! Start reading at: [`machine`], then `streams` (frames), `election` (votes), `entries` (the
//! stream of entries), `answers` (acks).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod answers;
mod calls;
pub mod config;
mod control;
mod election;
mod entries;
mod handshake;
mod lease;
pub mod limits;
pub mod machine;
mod maps;
mod reads;
mod session;
pub mod status;
pub mod store;
mod streams;
mod timing;
mod witness;

pub use config::Config;
pub use machine::{Action, Event, Fatal, Replica};
pub use status::Status;
pub use trilith_block::histogram::Histogram;

#[cfg(test)]
mod tests;
