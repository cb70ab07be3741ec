//! An initial RAM disk: a "newc" cpio archive, as the kernel's Documentation
//! (driver-api/early-userspace/buffer-format) describes it.

use anyhow::{Context, Result};
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; those above it must be there.
    ///
    /// # Errors
    /// When the archive is too big for its format.
    pub(crate) fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY, &[])
    }

    /// Adds a file that may be executed.
    ///
    /// # Errors
    /// When the archive is too big for its format.
    pub(crate) fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, PROGRAM, content)
    }

    /// Ends the archive and writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(mut self, path: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        std::fs::write(path, self.bytes).with_context(|| format!("write {}", path.display()))
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).context("a file of 4 GiB or more")?;
        let name_size = u32::try_from(name.len() + 1).context("a name of 4 GiB or more")?;
        self.entries += 1;
        let links = 1;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let dir = std::env::temp_dir().join(format!("cpio-{}", std::process::id()));
        let mut archive = Archive::default();
        archive.directory("dev").unwrap();
        archive.program("init", b"#!x\n1").unwrap();
        archive.write(&dir).unwrap();
        let bytes = std::fs::read(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len() % 4, 0);
        let heads: Vec<_> = text.match_indices("070701").map(|(at, _)| at % 4).collect();
        assert_eq!(heads, [0, 0, 0]);
        assert!(
            text.contains("init\0") && text.contains("#!x\n1") && text.contains("TRAILER!!!\0")
        );
        assert_eq!(text.get(110..114), Some("dev\0"));
    }
}
