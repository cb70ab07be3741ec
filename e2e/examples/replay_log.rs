//! Replays what device-mapper's log-writes target recorded, up to any point, onto another device: what
//! that device would hold if power had been cut there. The log's format is in the kernel's
//! Documentation (admin-guide/device-mapper/log-writes.rst) and `drivers/md/dm-log-writes.c`.
//!
//! `replay_log LOG` lists the entries at which something was made durable or marked, one a line:
//! number, `flush`, `fua` or `mark`, and a mark's name. `replay_log LOG DEVICE FROM TO` replays the
//! entries from FROM up to but without TO.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// Longest name of a mark that is listed; what is longer is cut.
const NAME_BYTES_MAX: u64 = 128;
/// Most bytes of one entry: far more than the kernel writes at once.
const ENTRY_BYTES_MAX: u64 = 64 << 20;

struct Entry {
    number: u64,
    /// Place and length on the recorded device, in bytes.
    at: u64,
    len: u64,
    flags: u64,
    /// Where its data is in the log.
    data: u64,
    name: String,
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let field = bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok());
    Ok(u64::from_le_bytes(field.context("a short block")?))
}

fn entries(log: &File) -> Result<Vec<Entry>> {
    let mut block = [0; 512];
    log.read_exact_at(&mut block, 0)?;
    ensure!(
        u64_at(&block, 0)? == MAGIC,
        "expected a log of dm-log-writes"
    );
    ensure!(u64_at(&block, 8)? == 1, "expected version 1 of the log");
    let count = u64_at(&block, 16)?;
    let sector = u64_at(&block, 24)? & 0xffff_ffff;
    ensure!(
        [512, 4096].contains(&sector),
        "expected sectors of 512 or 4096 bytes"
    );
    let mut found = Vec::new();
    let mut at = sector;
    for number in 0..count {
        log.read_exact_at(&mut block, at).context("read an entry")?;
        let flags = u64_at(&block, 16)?;
        let len = u64_at(&block, 8)? * sector;
        let name_len = usize::try_from(u64_at(&block, 24)?.min(NAME_BYTES_MAX))?;
        let name = block.get(32..32 + name_len).unwrap_or_default();
        ensure!(
            flags & DISCARD != 0 || len <= ENTRY_BYTES_MAX,
            "an entry of {len} bytes"
        );
        let data = at + sector;
        at = if flags & DISCARD == 0 {
            data + len
        } else {
            data
        };
        found.push(Entry {
            number,
            at: u64_at(&block, 0)? * sector,
            len,
            flags,
            data,
            name: String::from_utf8_lossy(name)
                .trim_end_matches('\0')
                .to_owned(),
        });
    }
    Ok(found)
}

fn list(entries: &[Entry]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for entry in entries {
        let number = entry.number;
        if entry.flags & MARK != 0 {
            writeln!(out, "{number} mark {}", entry.name)?;
        } else if entry.flags & FUA != 0 {
            writeln!(out, "{number} fua")?;
        } else if entry.flags & FLUSH != 0 {
            writeln!(out, "{number} flush")?;
        }
    }
    Ok(())
}

fn replay(log: &File, entry: &Entry, device: &File) -> Result<()> {
    if entry.flags & MARK != 0 || entry.len == 0 {
        return Ok(());
    }
    let mut left = entry.len;
    let mut done = 0;
    while left > 0 {
        let step = left.min(1 << 20);
        let mut bytes = vec![0; usize::try_from(step)?];
        if entry.flags & DISCARD == 0 {
            log.read_exact_at(&mut bytes, entry.data + done)?;
        }
        device.write_all_at(&bytes, entry.at + done)?;
        done += step;
        left -= step;
    }
    Ok(())
}

fn run(words: &[String]) -> Result<()> {
    let open = |path: &String| File::open(path).with_context(|| format!("open {path}"));
    match words {
        [log] => list(&entries(&open(log)?)?),
        [log, device, from, to] => {
            let log = open(log)?;
            let device = File::options().write(true).open(device)?;
            let (from, to): (u64, u64) = (from.parse()?, to.parse()?);
            for entry in entries(&log)?
                .iter()
                .filter(|e| (from..to).contains(&e.number))
            {
                replay(&log, entry, &device)?;
            }
            device.sync_all().context("sync the device")
        }
        _ => bail!("expected LOG, or LOG DEVICE FROM TO"),
    }
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "replay_log: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
