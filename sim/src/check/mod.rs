//! Is it still one disk? [`register`] decides whether what clients saw of one register has an
//! order; [`volume`] cuts the histories of whole volumes into registers and knows about flushes and
//! loss epochs; [`state`] looks at all replicas at once.

pub mod configs;
pub mod register;
pub mod state;
pub mod store;
pub mod volume;
