//! # Purpose
//! The replication protocol of `docs/protocol.md` (sections 4 to 6) as a small world that is
//! explored to the end: three replicas, two blocks, a few terms, writes, flushes, crashes and power
//! losses. R1 to R4 are the production function `trilith_engine::recovery::plan`; the rest is
//! modelled here. What is abstracted away, and what that costs, is in
//! `docs/verification-model.md`.
//!
//! # Invariants
//! Nothing in a step depends on the name of a replica. Every event that could be repeated for ever
//! is counted, so every world is finite.
//!
//! # Limits
//! [`limits`] and the budgets of [`Scope`].
//!
//! # Failure
//! A broken property is a [`Report`] with the shortest history that breaks it.
//!
//! # Start reading at
//! [`Protocol`], then `recover` and `live`; [`change`] is a world of its own.

#![forbid(unsafe_code)]

pub mod change;
pub mod limits;
mod live;
mod model;
mod recover;
mod replica;
mod report;
mod scope;
mod state;
mod symmetry;

pub use model::{Action, Protocol};
pub use report::{Report, check, find};
pub use scope::{Budget, Scope, Variant};
pub use state::{
    Engine, Entry, Kind, Phase, Replica, Slot, SlotState, Standing, State, Violation, Witness,
};
