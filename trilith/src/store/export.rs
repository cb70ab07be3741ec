//! `store export`: copies the content of one replica to a raw sparse file, with no engine.

use crate::cli::ExportArgs;
use crate::exit::{Exit, setup};
use crate::output;
use crate::store::inspect::{Found, find};
use crate::text::bytes_text;
use anyhow::Context;
use std::fs::File;
use std::os::unix::fs::FileExt;
use trilith_block::chunks::chunk_range;
use trilith_block::limits::{CHUNK_BYTES, EXTENT_CHUNKS};
use trilith_block::{ChunkMap, ChunkMask};
use trilith_replica::store::MapName;

/// Runs the command.
///
/// # Errors
/// When the store cannot be opened, a replica runs on it, or the file cannot be written.
pub(super) fn run(args: &ExportArgs) -> anyhow::Result<Exit> {
    let found = find(&args.path)?;
    found.files.data().map_err(setup)?;
    let facts = &found.image.facts;
    if !facts.is_complete() || !found.image.map(MapName::Need).is_empty() {
        tracing::warn!("this replica was not in sync: parts of it may be older than the volume");
    }
    if facts.tainted {
        tracing::warn!("this replica is tainted: unflushed writes may be missing");
    }
    let name = args.output.display();
    let output = File::options()
        .write(true)
        .create_new(true)
        .open(&args.output)
        .with_context(|| format!("make {name}"))
        .map_err(setup)?;
    output
        .set_len(facts.capacity)
        .with_context(|| format!("make {name}"))?;
    let bytes = copy(&found, &output).with_context(|| format!("write {name}"))?;
    output.sync_all().with_context(|| format!("write {name}"))?;
    output::print(&format!(
        "exported {} to {name}, {} of it data\n",
        bytes_text(facts.capacity),
        bytes_text(bytes)
    ));
    Ok(Exit::Done)
}

/// Copies every chunk that may hold data; runs of zeroes stay holes. Bytes of data.
fn copy(found: &Found, output: &File) -> anyhow::Result<u64> {
    let facts = &found.image.facts;
    let offset_of_data = found.image.superblock.layout.data_offset;
    let mut chunks: ChunkMap = found.image.map(MapName::Allocated).clone();
    for extent in &found.image.activity_log {
        // The map of what is allocated may lag behind in extents that were active.
        chunks.set_mask(*extent, ChunkMask::MAX);
    }
    let mut buffer = vec![0; usize::try_from(CHUNK_BYTES)?];
    let mut copied = 0;
    for (extent, mask) in chunks.iter() {
        for chunk in (0..EXTENT_CHUNKS).filter(|chunk| mask & (1 << chunk) != 0) {
            let offset = chunk_range(extent, chunk).start.byte_offset();
            let len = facts
                .capacity
                .saturating_sub(offset)
                .min(u64::from(CHUNK_BYTES));
            let bytes = &mut buffer[..usize::try_from(len)?];
            found
                .files
                .data()?
                .read_at(offset_of_data + offset, bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                output.write_all_at(bytes, offset)?;
                copied += len;
            }
        }
    }
    Ok(copied)
}
