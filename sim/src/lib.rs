//! Purpose: the deterministic cluster. The production machines (engine, replica with its store)
//! run in one thread under virtual time, with a network, disks, hosts and clocks that fail in every
//! way protocol.md section 1 names, and checkers that watch.
//!
//! Invariants: a run is a function of its seed; two runs of a seed have the same event hash. A
//! failure of a checker is a bug of a machine or of the simulator, never bad luck.
//!
//! Limits: [`limits`].
//!
//! Failure: a run ends with a [`run::Failure`], which names the seed and tells the story.
//!
//! Start reading at: [`run`], then [`cluster`], then [`world`]; [`disk`] and [`network`] say what
//! they promise, [`check`] what is demanded.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "geometries are tiny, and a broken expectation of the simulator ends a run loudly"
)]

pub mod betrayal;
pub mod buffers;
pub mod check;
pub mod cluster;
pub mod config;
pub mod decay;
pub mod digest;
pub mod disk;
pub mod entropy;
pub mod explore;
pub mod fuzz;
#[cfg(feature = "proof")]
pub mod hunt;
pub mod initiator;
pub mod iscsi;
pub mod limits;
pub mod nbd;
pub mod network;
pub mod process;
pub mod replace;
pub mod run;
pub mod scrub;
pub mod shrink;
pub mod small;
pub mod storage;
pub mod story;
pub mod supervisor;
pub mod words;
pub mod workload;
pub mod world;
