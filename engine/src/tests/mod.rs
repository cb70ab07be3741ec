//! The whole engine against fake replicas, through real frames.

mod arena;
mod elect;
mod fake;
mod members;
mod model;
mod replace;
mod serve;
mod world;
