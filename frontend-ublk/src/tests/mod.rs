//! Tests of the crate's parts that are more than a few lines long.

mod formats;
mod model;
mod requests;
mod rig;
mod serve;
