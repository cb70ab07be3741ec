//! The replica's on-disk store: a pure state machine that emits [`DiskOp`]s and takes their
//! completions. Owned by the replica machine. Format: `docs/format/disk.md`. Rules (L1, J1, F2, M15
//! ...) are those of `docs/protocol.md`.
//!
//! Shape. Every call takes the buffers and a [`StoreOut`]; it appends operations for the driver and
//! [`StoreEvent`]s for the owner, which drains both. [`Store::settle`] is called once after each
//! batch: it groups what waits for the journal into one write and stores the window's header.
//! Results come as events that carry the caller's [`Token`] or the entry's idx.
//!
//! Life. [`Opening`] reads superblocks, checkpoint and journal, decides (clean, resumed, tainted),
//! writes a fresh checkpoint and superblock and gives the [`Store`]. [`Format`] makes a new volume.
//! [`Inspect`] reads without writing, for `check`, `show` and export.
//!
//! Order in the store. [`Store::entry`], [`Store::repair`], [`Store::flush`], [`Store::dirty_clear`],
//! [`Store::told`], [`Store::sync_set`], [`Store::term_start`] and [`Store::seal`] take effect in
//! call order: the last four are full barriers (they wait for all changes before them; what comes
//! after waits behind them). Changes run in parallel except where they overlap (O1). Reads have no
//! order. [`Store::vote`], [`Store::reconcile`], [`Store::need_set`] and [`Store::opened`] only
//! write the journal and do not wait for changes.
//!
//! A witness (7.1) is a store without data: [`Store::witness_epoch`] and [`Store::witness_seal`] take
//! the place of the barriers, and the data file is never touched.
//!
//! What survives what:
//!
//! | | process crash | power loss |
//! |---|---|---|
//! | term, vote, attach epoch, se, iss, trk, loss, w, sealed, tainted | journal | journal |
//! | need, limbo | words | journal, plus all chunks of the activity log |
//! | dirty maps, allocated | words | journal, plus all chunks of the activity log |
//! | window, upto, tidx, lease grant | words | lost: the replica is tainted |
//!
//! Crash argument. A bit of a map is set in memory and in the words before what it covers reaches
//! the device; it is in the journal before its extent leaves the activity log; and the extent was
//! in the journal's activity log before the device write was submitted (L1). So after a power loss
//! the journal's map plus all chunks of its activity log covers every change.

mod activity_log;
mod admission;
mod api;
mod barriers;
mod bytes;
mod changes;
mod check;
mod checkpoint;
mod checksums;
mod commit;
mod disk;
mod format;
mod geometry;
mod image;
mod journal;
pub mod limits;
mod log_use;
mod maps;
mod opening;
mod reader;
mod reads;
mod reconfigure;
mod record;
mod rules;
mod space;
mod state;
mod sums_use;
mod superblock;
mod window;
mod witness;

pub use api::{
    Admission, Change, Counters, Entry, FailCause, Join, LeaseGrant, MapName, StoreError,
    StoreEvent, SyncSet, TermStart, Token, Told,
};
pub use check::{Finding, check};
pub use checksums::stored_checksum;
pub use disk::{DiskError, DiskOp, DiskTag, FileRole, StoreOut};
pub use format::{Format, FormatParams};
pub use geometry::{Geometry, Layout};
pub use image::{Image, Report};
pub use opening::{OpenError, OpenParams, OpenStep, Opened, Opening};
pub use reader::Inspect;
pub use state::Store;
pub use superblock::{
    FORMAT_VERSION, FORMAT_VERSION_FIRST, Facts, GENERATION_FIRST, Superblock, SuperblockError,
};
pub use witness::WitnessEpoch;

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of the tests are small"
)]
mod tests;
