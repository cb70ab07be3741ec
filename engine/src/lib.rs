//! Purpose: the volume machine. One engine leads one volume: it takes the requests of clients,
//! gives each entry its place in the stream, sends it to the replicas, answers at a majority, picks
//! the replica for each read, and heals the replicas.
//!
//! Invariants: at most one engine holds a term; an acknowledged write is held by a majority of
//! counted members; no read returns what is not committed or is older than what is. Rules are
//! cited by the names of `docs/protocol.md` (R1, D1, O1 ...), each in one place.
//!
//! Limits: [`limits`], [`config::Sizes`].
//!
//! Failure: what a client or a replica sends never panics; a replica that breaks the protocol loses
//! its session. An engine that has been superseded ends with [`ExitReason::Fenced`].
//!
//! Start reading at: [`api`], then `engine`, `stream`, `admit`, `read`, `campaign`, `syncset`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod admit;
pub mod api;
mod campaign;
pub mod config;
mod control;
mod engine;
mod epochs;
mod extents;
mod heal;
mod lease;
pub mod limits;
mod messages;
mod mode;
mod ops;
pub mod order;
mod peer;
mod read;
pub mod rebuild;
mod reconfigure;
mod recover;
pub mod recovery;
mod rng;
pub mod scrub;
mod scrubbing;
mod session;
mod slab;
pub mod slowest;
mod sorted;
mod spans;
pub mod status;
mod stop;
mod stream;
mod survey;
mod syncset;
mod witness;

#[cfg(test)]
mod tests;

pub use api::{Action, Event, ExitReason, Mode, Operator, Waiting};
pub use config::{ConfigError, EngineConfig, Sizes, Timing};
pub use engine::Engine;
pub use reconfigure::{ChangeError, ChangeStep};
pub use scrub::{ScrubConfig, ScrubNews, ScrubResult};
pub use status::Status;
