//! Purpose: a volume as a block device of this host, `/dev/ublkbN`, by the kernel's ublk driver. A
//! pure machine ([`UblkServer`]) turns the driver's request descriptions into requests of the engine
//! and their completions into results; [`Device`] makes, recovers, stops and removes the device; the
//! loop of `runtime` moves commands and payload between the two.
//!
//! Invariants: a request is committed to the kernel exactly once, and only after the engine has
//! completed it. A device that outlives its process keeps its requests and gives them to the next
//! one (user recovery with reissue), so nobody who uses it sees an error. Only devices that carry
//! this crate's mark are ever changed. The block device has the sizes, the cache and the discard
//! limits that the volume has.
//!
//! Limits: [`limits`].
//!
//! Failure: a kernel without the driver, or with one that is too old, is a [`ControlError`] that
//! says what to do. A description that makes no sense fails its request and nothing else. Calls of
//! [`Control`] block; [`Device`] makes them in a thread of its own.
//!
//! Start reading at: `server.rs` (the machine), `request.rs` (what a description means), then
//! `device.rs` (a device's life) and `control.rs` (the commands).
#![allow(
    unsafe_code,
    reason = "commands name memory for the kernel to fill: one place in `ring.rs`"
)]

mod abi;
mod control;
mod device;
mod drive;
mod features;
pub mod limits;
mod mark;
mod params;
mod request;
mod ring;
mod server;

pub use abi::{DeviceInfo, State};
pub use control::{Control, ControlError};
pub use device::{Device, DeviceConfig, News, Number, Opened};
pub use drive::{Next, carry_out};
pub use features::{Features, Plan, Shortage};
pub use mark::Mark;
pub use params::Params;
pub use server::{UblkAction, UblkConfig, UblkEvent, UblkServer, UblkStatus};

#[cfg(test)]
mod tests;
