//! Checks of an [`Image`]: what `trilith store check` reports beside the findings of the reader.

use super::image::Image;
use super::limits::MAPS;
use super::state::full_mask;
use alloc::vec::Vec;
use trilith_block::ExtentNo;

/// Something wrong with a volume's metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A superblock copy (0 = A, 1 = B) is not valid; the other one was used.
    Superblock(usize),
    /// The checkpoint cannot be read from this block on: maps and activity log are lost.
    Checkpoint(u32),
    /// More extents in the activity log than slots.
    ActivityLog {
        /// Slots.
        slots: u32,
        /// Extents.
        found: usize,
    },
    /// A map names chunks that the volume does not have.
    BeyondEnd {
        /// Number of the map (0 need, 1 limbo, 2 allocated, 3 + m dirty of member m).
        map: usize,
        /// The extent.
        extent: ExtentNo,
    },
    /// It is marked as stopped cleanly but the activity log is not empty.
    SealedWithLog,
    /// It has a dirty map for itself.
    DirtyForItself,
    /// The in-sync set is not part of the tracked set.
    IssBeyondTrk,
}

/// Everything that is wrong with an image. Empty for a sound volume.
pub fn check(image: &Image) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (copy, error) in image.report.superblock_errors.iter().enumerate() {
        if error.is_some() {
            findings.push(Finding::Superblock(copy));
        }
    }
    if let Some(block) = image.report.checkpoint_bad {
        findings.push(Finding::Checkpoint(block));
    }
    let (slots, found) = (image.superblock.geometry.al_slots, image.activity_log.len());
    if found > usize::try_from(slots).unwrap_or(0) {
        findings.push(Finding::ActivityLog { slots, found });
    }
    for map in 0..MAPS {
        for (extent, mask) in image.maps[map].iter() {
            if mask & !full_mask(image.facts.capacity, extent) != 0 {
                findings.push(Finding::BeyondEnd { map, extent });
            }
        }
    }
    if image.facts.sealed && !image.activity_log.is_empty() {
        findings.push(Finding::SealedWithLog);
    }
    if !image.maps[3 + image.facts.member.index()].is_empty() {
        findings.push(Finding::DirtyForItself);
    }
    if !image.facts.iss.minus(image.facts.trk).is_empty() {
        findings.push(Finding::IssBeyondTrk);
    }
    findings
}
