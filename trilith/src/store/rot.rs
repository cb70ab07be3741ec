//! `store check --data`: reads the data of a replica that does not run and compares it with its checksums (2.5).

use crate::store::inspect::{Found, arena, file};
use core::fmt::Write;
use trilith_block::chunks::chunk_range;
use trilith_block::limits::{BLOCK_BYTES, CHUNK_BYTES, EXTENT_CHUNKS};
use trilith_block::{Buffers, ExtentNo};
use trilith_replica::store::limits::META_BLOCK_BYTES;
use trilith_replica::store::{FileRole, MapName, stored_checksum};
use trilith_runtime::Arena;

/// Blocks that are named, at most; more are counted.
const NAMED_MAX: u64 = 32;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Rot {
    /// Blocks that were compared.
    pub(super) compared: u64,
    /// Blocks whose checksum is not known, or is that of another write.
    pub(super) unknown: u64,
    /// Blocks that are not what was written there.
    pub(super) rotten: u64,
    /// Chunks that the device could not read.
    pub(super) unreadable: u64,
}

impl Rot {
    /// Nothing is wrong.
    pub(super) fn is_sound(&self) -> bool {
        self.rotten == 0 && self.unreadable == 0
    }
}

/// Compares every block that may hold data, and names the first that are wrong in `text`.
///
/// # Errors
/// When the replica keeps no checksums.
pub(super) fn compare(found: &Found, text: &mut String) -> anyhow::Result<Rot> {
    found.files.data()?;
    let layout = &found.image.superblock.layout;
    anyhow::ensure!(
        layout.checksums_offset != 0,
        "compare the data: this replica keeps no checksums (trilith store format --checksums)"
    );
    let arena = arena()?;
    let mut rot = Rot::default();
    for (extent, mask) in found.image.map(MapName::Allocated).iter() {
        let chunks = (0..EXTENT_CHUNKS).filter(|chunk| mask & (1 << chunk) != 0);
        // Of what was being written when the replica died its page says nothing (B2), nor does one that cannot be read.
        let logged = found.image.activity_log.contains(&extent);
        let page = (!logged).then(|| page_of(found, extent)).flatten();
        for chunk in chunks {
            let blocks = chunk_range(extent, chunk);
            let at = usize::try_from(blocks.start.0 - extent.first().0)?;
            match page.as_ref().and_then(|page| page.get(at * 4..)) {
                Some(sums) => chunk_compared(found, &arena, (extent, chunk), sums, &mut rot, text)?,
                None => rot.unknown += u64::from(blocks.count.0),
            }
        }
    }
    Ok(rot)
}

/// The checksums of an extent; `None` when they cannot be read.
fn page_of(found: &Found, extent: ExtentNo) -> Option<Vec<u8>> {
    let meta = file(&found.files, FileRole::Meta).ok()?;
    let mut page = vec![0; META_BLOCK_BYTES as usize];
    let offset = found.image.superblock.layout.checksum_page(extent);
    meta.read_at(offset, &mut page).ok().map(|()| page)
}

fn chunk_compared(
    found: &Found,
    arena: &Arena,
    (extent, chunk): (ExtentNo, u32),
    sums: &[u8],
    rot: &mut Rot,
    text: &mut String,
) -> anyhow::Result<()> {
    let offset = chunk_range(extent, chunk).start.byte_offset();
    let left = found.image.facts.capacity.saturating_sub(offset);
    let mut bytes = vec![0; usize::try_from(left.min(u64::from(CHUNK_BYTES)))?];
    let start = found.image.superblock.layout.data_offset + offset;
    if let Err(error) = found.files.data()?.read_at(start, &mut bytes) {
        rot.unreadable += 1;
        if rot.unreadable <= NAMED_MAX {
            writeln!(
                text,
                "bytes {offset} to {}: {error}",
                offset + bytes.len() as u64
            )?;
        }
        return Ok(());
    }
    let blocks = bytes.chunks_exact(BLOCK_BYTES as usize);
    for (at, (block, sum)) in blocks.zip(sums.chunks_exact(4)).enumerate() {
        let sum = sum.try_into().map_or(0, u32::from_le_bytes);
        if sum == 0 {
            rot.unknown += 1;
            continue;
        }
        rot.compared += 1;
        if stored_checksum(arena.crc32c(0, block)) != sum {
            rot.rotten += 1;
            if rot.rotten <= NAMED_MAX {
                let byte = offset + at as u64 * u64::from(BLOCK_BYTES);
                writeln!(text, "block at byte {byte}: not what was written there")?;
            }
        }
    }
    Ok(())
}
