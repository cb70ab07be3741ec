//! Tests of the whole machine over a real store and an in-memory disk.
mod arena;
