//! Tests of the whole machine in its small world.

mod client;
mod commands;
mod fuzzing;
mod lifecycle;
mod limits;
mod model;
mod options;
