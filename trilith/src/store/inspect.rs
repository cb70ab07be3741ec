//! `store check` and `store show`: read the metadata without changing it.

use crate::cli::CheckArgs;
use crate::exit::{Exit, setup};
use crate::host::replica::files::StoreFiles;
use crate::output;
use crate::store::words::{finding, open_error, superblock_error};
use crate::text::bytes_text;
use anyhow::{Context, anyhow, bail};
use core::time::Duration;
use std::fmt::Write;
use std::path::Path;
use trilith_block::{BufSlice, Buffers, MemberSet};
use trilith_replica::store::{
    DiskError, DiskOp, DiskTag, FileRole, Image, Inspect, MapName, StoreOut, check as check_image,
};
use trilith_runtime::{Arena, ArenaConfig, DataFile};

/// Memory for reading metadata.
const ARENA_BYTES: u64 = 2 << 20;

/// A store that is looked at. Its lock is held meanwhile.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) files: StoreFiles,
    pub(super) image: Box<Image>,
}

/// Reads the metadata of the store at `path`.
///
/// # Errors
/// When there is none, a replica runs on it, or it cannot be opened.
pub(super) fn find(path: &Path) -> anyhow::Result<Found> {
    let files = StoreFiles::find(path, false, Duration::ZERO).map_err(setup)?;
    let mut arena = arena()?;
    let mut out = StoreOut::new();
    let mut inspect = Inspect::new(&mut arena, &mut out).context("allocate memory for reading")?;
    loop {
        let ops: Vec<(DiskTag, DiskOp)> = out.ops.drain(..).collect();
        if ops.is_empty() {
            bail!("read {}: the reader has stopped", path.display());
        }
        for (tag, op) in ops {
            let result = match op {
                DiskOp::Read { role, offset, buf } => {
                    // What a reader asks for is in the metadata.
                    let file = file(&files, role).map_err(|_| DiskError::Io);
                    file.and_then(|file| read(file, offset, buf, &mut arena))
                }
                // A reader asks for nothing else.
                _ => Err(DiskError::Io),
            };
            match inspect.disk_done(tag, result, &mut arena, &mut out) {
                None => {}
                Some(Ok(image)) => return Ok(Found { files, image }),
                Some(Err(error)) => {
                    let error = anyhow!("{}", open_error(&error));
                    return Err(error).with_context(|| format!("open store in {}", path.display()));
                }
            }
        }
    }
}

/// Memory for reading, and the CRC that the store uses.
pub(super) fn arena() -> anyhow::Result<Arena> {
    Ok(Arena::new(ArenaConfig {
        budget_bytes: ARENA_BYTES,
        huge_pages: false,
    })?)
}

/// The file, or the part of the device, that has this role.
///
/// # Errors
/// A witness has no data.
pub(super) fn file(files: &StoreFiles, role: FileRole) -> anyhow::Result<&DataFile> {
    match role {
        FileRole::Meta => Ok(files.meta()),
        FileRole::Data => files.data(),
    }
}

/// What lies beyond the end of a file reads as zeroes.
fn read(file: &DataFile, offset: u64, buf: BufSlice, arena: &mut Arena) -> Result<(), DiskError> {
    let end = file.len().map_err(|_| DiskError::Io)?;
    let bytes = arena.bytes_mut(buf);
    bytes.fill(0);
    let there = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
    let there = there.min(bytes.len());
    file.read_at(offset, &mut bytes[..there]).map_err(|error| {
        tracing::error!("{error}");
        DiskError::Io
    })
}

/// `store check`.
///
/// # Errors
/// When the store cannot be opened, or is asked for checksums that it does not have.
pub(super) fn check(args: &CheckArgs) -> anyhow::Result<Exit> {
    let found = find(&args.path)?;
    let report = &found.image.report;
    let mut text = String::new();
    for (name, error) in ["A", "B"].iter().zip(report.superblock_errors) {
        if let Some(error) = error {
            writeln!(text, "superblock copy {name}: {}", superblock_error(error))?;
        }
    }
    let findings = check_image(&found.image);
    for one in &findings {
        writeln!(text, "{}", finding(one))?;
    }
    let facts = &found.image.facts;
    let mut short = false;
    if !facts.is_witness() {
        let size = found.files.data()?.len()?;
        let wanted = found.image.superblock.layout.data_offset + facts.capacity;
        short = size < wanted;
        if short {
            writeln!(text, "data: expected at least {wanted} bytes, found {size}")?;
        }
    }
    let what = if facts.is_witness() {
        "witness"
    } else {
        "replica"
    };
    writeln!(
        text,
        "{what} {} (member {}): {} journal blocks replayed, {} torn, {} checkpoint blocks",
        facts.replica,
        facts.member,
        report.journal_blocks,
        report.journal_torn,
        report.checkpoint_blocks
    )?;
    let mut sound = findings.is_empty() && !short;
    if args.data {
        let rot = super::rot::compare(&found, &mut text).map_err(setup)?;
        sound &= rot.is_sound();
        writeln!(
            text,
            "data: {} blocks compared, {} without a known checksum, {} rotten, {} chunks that cannot be read",
            rot.compared, rot.unknown, rot.rotten, rot.unreadable
        )?;
    }
    text.push_str(if sound { "sound\n" } else { "not sound\n" });
    output::print(&text);
    Ok(if sound { Exit::Done } else { Exit::Failed })
}

fn members(set: MemberSet) -> String {
    let list: Vec<String> = set.iter().map(|member| member.to_string()).collect();
    if list.is_empty() {
        "none".to_owned()
    } else {
        list.join(" ")
    }
}

/// `store show`.
///
/// # Errors
/// When the store cannot be opened.
pub(super) fn show(path: &Path) -> anyhow::Result<Exit> {
    let found = find(path)?;
    let image = &found.image;
    let facts = &image.facts;
    let state = match (facts.sealed, facts.tainted) {
        (_, true) => "tainted (its window was lost, or a flush failed)",
        (true, false) => "sealed (stopped cleanly)",
        (false, false) => "not sealed (running, or killed)",
    };
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<14} {value}");
    line("volume", facts.volume.to_string())?;
    line(
        "size",
        format!("{} ({} bytes)", bytes_text(facts.capacity), facts.capacity),
    )?;
    line("replica", facts.replica.to_string())?;
    line(
        "member",
        format!("{} of {}", facts.member, members(facts.config.voters)),
    )?;
    if facts.config.has_witness() {
        let own = if facts.is_witness() {
            ", this one: it holds no data"
        } else {
            ""
        };
        line("witness", format!("{}{own}", members(facts.config.witness)))?;
    }
    line("state", state.to_owned())?;
    let checksums = image.superblock.layout.checksums_offset != 0;
    line("checksums", if checksums { "yes" } else { "no" }.to_owned())?;
    line(
        "term",
        format!("{}, voted for {}", facts.term.0, facts.voted),
    )?;
    line("attach epoch", facts.attach_epoch.to_string())?;
    line(
        "sync epoch",
        format!("term {} number {}", facts.se.term.0, facts.se.n),
    )?;
    line("in sync", members(facts.iss))?;
    line("tracked", members(facts.trk))?;
    line("loss epoch", facts.loss.to_string())?;
    if facts.is_witness() {
        output::print(&text);
        return Ok(Exit::Done);
    }
    line("watermark", facts.w.0.to_string())?;
    line(
        "activity log",
        format!("{} extents", image.activity_log.len()),
    )?;
    for (name, map) in [
        ("allocated", MapName::Allocated),
        ("need", MapName::Need),
        ("limbo", MapName::Limbo),
    ] {
        line(name, bytes_text(image.map(map).bytes()))?;
    }
    for peer in facts.config.data().without(facts.member).iter() {
        let dirty = image.map(MapName::Dirty(peer)).bytes();
        line("dirty", format!("{} for member {peer}", bytes_text(dirty)))?;
    }
    output::print(&text);
    Ok(Exit::Done)
}
