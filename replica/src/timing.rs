//! Latency of device operations, from the step that emits one to the step that hears of its end.

use crate::limits::TIMED_MAX;
use crate::store::{DiskOp, DiskTag, FileRole};
use alloc::boxed::Box;
use alloc::vec;
use trilith_block::Monotonic;
use trilith_block::histogram::Histogram;

/// What is measured apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Read,
    Write,
    Flush,
    Journal,
    Other,
}

/// Latency by class of operation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Latencies {
    /// Reads of data.
    pub read: Histogram,
    /// Writes of data.
    pub write: Histogram,
    /// Flushes of either file.
    pub flush: Histogram,
    /// Writes of metadata: nearly all of them group commits of the journal.
    pub journal: Histogram,
    /// Allocations, punched holes, zeroed ranges, reads of metadata.
    pub other: Histogram,
}

#[derive(Clone, Copy, Debug)]
struct Started {
    tag: DiskTag,
    at: Monotonic,
    class: Class,
}

/// Operations under way. A direct-mapped table: an operation that finds its place taken is not
/// measured.
#[derive(Debug)]
pub(crate) struct Timing {
    started: Box<[Option<Started>]>,
    pub(crate) latencies: Latencies,
    pub(crate) in_flight: u64,
}

impl Timing {
    pub(crate) fn new() -> Timing {
        Timing {
            started: vec![None; TIMED_MAX].into_boxed_slice(),
            latencies: Latencies::default(),
            in_flight: 0,
        }
    }

    fn place(tag: DiskTag) -> usize {
        // Fibonacci hashing: whatever a tag is made of, its bits reach the top.
        let mixed = tag.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(mixed).unwrap_or(0) % TIMED_MAX
    }

    pub(crate) fn start(&mut self, tag: DiskTag, op: &DiskOp, now: Monotonic) {
        let class = match op {
            DiskOp::Read {
                role: FileRole::Data,
                ..
            } => Class::Read,
            DiskOp::Write {
                role: FileRole::Data,
                ..
            } => Class::Write,
            DiskOp::Write {
                role: FileRole::Meta,
                ..
            } => Class::Journal,
            DiskOp::Flush { .. } => Class::Flush,
            DiskOp::Read {
                role: FileRole::Meta,
                ..
            }
            | DiskOp::Allocate { .. }
            | DiskOp::PunchHole { .. }
            | DiskOp::ZeroRange { .. } => Class::Other,
        };
        self.in_flight += 1;
        let place = &mut self.started[Self::place(tag)];
        if place.is_none() {
            *place = Some(Started {
                tag,
                at: now,
                class,
            });
        }
    }

    pub(crate) fn end(&mut self, tag: DiskTag, now: Monotonic) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let place = &mut self.started[Self::place(tag)];
        if let Some(started) = place.filter(|s| s.tag == tag) {
            *place = None;
            let histogram = match started.class {
                Class::Read => &mut self.latencies.read,
                Class::Write => &mut self.latencies.write,
                Class::Flush => &mut self.latencies.flush,
                Class::Journal => &mut self.latencies.journal,
                Class::Other => &mut self.latencies.other,
            };
            histogram.record(now.since(started.at));
        }
    }
}
