//! The whole engine against fake replicas, through real frames.

pub(crate) mod arena;
mod elect;
mod fake;
mod members;
mod model;
mod replace;
mod scrub;
mod serve;
mod witness;
mod world;
