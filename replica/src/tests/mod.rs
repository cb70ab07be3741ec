//! Tests of the whole machine: a real store, an in-memory disk, engines played by the tests.

mod arena;
mod configs;
mod disk;
mod entries;
mod epochs;
mod fuzz;
mod model;
mod restarts;
mod rig;
mod sessions;
mod votes;
mod witness;
