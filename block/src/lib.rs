//! Purpose: the vocabulary that every crate of Trilith shares. Addresses and lengths with their
//! units in the type, requests and completions, buffer handles, per-extent chunk bitmaps, and the
//! seams ([`Machine`], [`Stream`], [`Buffers`], [`Words`]) between pure logic and its drivers.
//!
//! Invariants: no I/O, no clock, no randomness; a value of a unit type is always in its range.
//!
//! Limits: [`limits`].
//!
//! Failure: functions here return values or errors; nothing panics on outside input.
//!
//! Start reading at: [`machine`], then [`request`], then [`units`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "proof"))]
extern crate std;

pub mod buffers;
pub mod chunks;
pub mod histogram;
pub mod ids;
pub mod limits;
pub mod machine;
pub mod mark;
pub mod membership;
pub mod mutant;
pub mod overlap;
pub mod request;
pub mod time;
pub mod units;

pub use buffers::{BufId, BufSlice, Buffers};
pub use chunks::{ChunkMap, ChunkMask};
pub use ids::{Idx, MemberId, MemberSet, SyncEpoch, Term, Uuid};
pub use machine::{Actions, Bytes, ConnId, Machine, Stream, StreamEvent, Want, Words};
pub use mark::Mark;
pub use membership::Membership;
pub use mutant::Mutant;
pub use overlap::Overlap;
pub use request::{
    Capabilities, Completion, ErrorKind, FrontendAction, FrontendEvent, Op, Outcome, Request,
    RequestFlags, Tag, VolumeInfo,
};
pub use time::Monotonic;
pub use units::{BlockRange, Blocks, ByteRange, ExtentNo, Lba};
