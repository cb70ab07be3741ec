//! Purpose: the NBD server protocol as a pure machine, [`NbdServer`]. It serves one volume to many
//! connections: fixed newstyle negotiation, then simple, structured or extended replies. Bytes of
//! clients come in as stream events and leave as requests to the engine; completions come in and
//! leave as replies.
//!
//! Invariants: a reply never precedes the completion of what it promises; every buffer is owned by
//! exactly one place (a receive, the engine, a request that waits for its other parts); an illegal
//! request gets the error that the specification names and the connection stays usable; bytes after
//! which the stream cannot be followed close it.
//!
//! Limits: [`limits`]. At them connections are not read (requests, payload), options are refused,
//! or connections are closed. Clients cannot size an allocation: option data is at most 8 KiB, a
//! write is received in parts of at most 1 MiB, everything longer is thrown away as it arrives.
//!
//! Failure: an error of the engine becomes an error of the protocol ([`NbdError::from_kind`]); the
//! end of the volume becomes `NBD_ESHUTDOWN` and then a close. A connection that goes away leaves
//! its requests to the engine; their completions are swallowed.
//!
//! Start reading at: `server.rs`, then `transmission.rs`. Specification: doc/proto.md of the NBD
//! project with its extension-ext-header branch; docs/spec/nbd.md says where each rule is obeyed.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod command;
mod config;
mod conn;
mod error;
mod extents;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handshake;
pub mod limits;
mod pool;
mod proto;
mod reply;
mod server;
mod tag;
#[cfg(test)]
mod tests;
mod transmission;

pub use config::{ConfigProblem, NbdConfig, NbdStatus};
pub use error::NbdError;
pub use server::NbdServer;
