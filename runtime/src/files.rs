//! Data files: opened with O_DIRECT where that works, locked on the very description that the ring
//! uses.
//!
//! The lock is the drain barrier (K1): requests in flight keep the open file description alive after
//! their process has died, so the lock is free only once the last old write has landed or failed.

use crate::error::RuntimeError;
use core::time::Duration;
use crossbeam::channel::bounded;
use rustix::fs::{FlockOperation, OFlags, flock, fstat};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a data file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    Device,
}

/// How to open a data file.
#[derive(Clone, Debug)]
pub struct OpenFile {
    /// Where it is.
    pub path: PathBuf,
    /// For writing too.
    pub write: bool,
    /// Create it with mode 0600 when it is missing.
    pub create: bool,
    /// Fail when it exists (with `create`).
    pub create_new: bool,
    /// Bypass the page cache where the file system allows it.
    pub direct: bool,
    /// Take the exclusive lock, waiting at most this long; `None`: no lock. A block device is also
    /// opened O_EXCL, since flock is per inode of its node.
    pub lock: Option<Duration>,
}

impl OpenFile {
    /// An existing file, to be read and written with O_DIRECT, locked without waiting.
    pub fn existing(path: impl Into<PathBuf>) -> OpenFile {
        OpenFile {
            path: path.into(),
            write: true,
            create: false,
            create_new: false,
            direct: true,
            lock: Some(Duration::ZERO),
        }
    }
}

/// An open data file.
#[derive(Debug)]
pub struct DataFile {
    pub(crate) file: File,
    path: PathBuf,
    kind: FileKind,
    direct: bool,
}

impl DataFile {
    /// Opens and locks.
    ///
    /// # Errors
    /// When it cannot be opened, is neither file nor block device, or (kind `WouldBlock`) another
    /// process holds the lock.
    pub fn open(how: &OpenFile) -> Result<DataFile, RuntimeError> {
        let what = || format!("open {}", how.path.display());
        let is_device =
            std::fs::metadata(&how.path).is_ok_and(|entry| entry.file_type().is_block_device());
        let (file, direct) =
            open_at(how, is_device).map_err(|error| RuntimeError::new(what(), error))?;
        let kind = file
            .metadata()
            .map_err(|error| RuntimeError::new(what(), error))?
            .file_type();
        let kind = if kind.is_file() {
            FileKind::Regular
        } else if kind.is_block_device() {
            FileKind::Device
        } else {
            let why = "expected a regular file or a block device";
            return Err(RuntimeError::own(what(), io::ErrorKind::InvalidInput, why));
        };
        let file = match how.lock {
            Some(wait) => lock(file, wait, &how.path)?,
            None => file,
        };
        Ok(DataFile {
            file,
            path: how.path.clone(),
            kind,
            direct,
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// True when it bypasses the page cache: offsets, lengths and memory must then be aligned.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Its length in bytes; for a block device the device's.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn len(&self) -> Result<u64, RuntimeError> {
        let what = || format!("measure {}", self.path.display());
        match self.kind {
            FileKind::Regular => {
                let stat = fstat(&self.file).map_err(|error| RuntimeError::new(what(), error))?;
                Ok(u64::try_from(stat.st_size).unwrap_or(0))
            }
            FileKind::Device => {
                // The seek end of a block device is its size, by any privilege.
                let mut file = &self.file;
                file.seek(SeekFrom::End(0))
                    .map_err(|error| RuntimeError::new(what(), error))
            }
        }
    }

    /// True when it holds no byte.
    ///
    /// # Errors
    /// As [`DataFile::len`].
    pub fn is_empty(&self) -> Result<bool, RuntimeError> {
        Ok(self.len()? == 0)
    }

    /// Bytes of disk space that the file takes (0 for a device: unknown).
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn allocated_bytes(&self) -> Result<u64, RuntimeError> {
        let what = || format!("measure {}", self.path.display());
        let stat = fstat(&self.file).map_err(|error| RuntimeError::new(what(), error))?;
        Ok(u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512))
    }

    /// Makes a regular file `bytes` long; what is new reads zero and takes no space. Blocks.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn set_len(&self, bytes: u64) -> Result<(), RuntimeError> {
        let what = || format!("make {} {bytes} bytes long", self.path.display());
        self.file
            .set_len(bytes)
            .map_err(|error| RuntimeError::new(what(), error))
    }

    /// Allocates a range of a regular file. Blocks: for format time; the loop has
    /// [`crate::DiskOp::Allocate`].
    ///
    /// # Errors
    /// When there is no room or the file system cannot.
    pub fn allocate(&self, offset: u64, len: u64) -> Result<(), RuntimeError> {
        let what = || {
            format!(
                "allocate {len} bytes at {offset} of {}",
                self.path.display()
            )
        };
        rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), offset, len)
            .map_err(|error| RuntimeError::new(what(), error))
    }

    /// Reads at `offset` until `bytes` is full. Blocks: for recovery and offline inspection. With
    /// O_DIRECT the memory must be aligned to the device's block.
    ///
    /// # Errors
    /// When the file ends before, or the device fails.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), RuntimeError> {
        let what = || {
            format!(
                "read {} bytes at {offset} of {}",
                bytes.len(),
                self.path.display()
            )
        };
        let what = what();
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset)
            .map_err(|error| RuntimeError::new(what, error))
    }

    /// Writes all of `bytes` at `offset`. Blocks: for format time.
    ///
    /// # Errors
    /// When there is no room or the device fails.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), RuntimeError> {
        let what = || {
            format!(
                "write {} bytes at {offset} of {}",
                bytes.len(),
                self.path.display()
            )
        };
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
            .map_err(|error| RuntimeError::new(what(), error))
    }

    /// Makes all data and the length durable. Blocks.
    ///
    /// # Errors
    /// When the device fails; that is final.
    pub fn sync(&self) -> Result<(), RuntimeError> {
        let what = || format!("sync {}", self.path.display());
        self.file
            .sync_all()
            .map_err(|error| RuntimeError::new(what(), error))
    }
}

/// Opens with O_DIRECT if wanted, and without when the file system refuses it.
fn open_at(how: &OpenFile, is_device: bool) -> io::Result<(File, bool)> {
    let exclusive = if is_device && how.lock.is_some() {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    let open = |flags: OFlags| {
        OpenOptions::new()
            .read(true)
            .write(how.write)
            .create(how.create && !is_device)
            .create_new(how.create_new && !is_device)
            .mode(0o600)
            .custom_flags(flags.bits().cast_signed())
            .open(&how.path)
    };
    if how.direct {
        match open(OFlags::DIRECT | exclusive) {
            Ok(file) => return Ok((file, true)),
            // With create_new a refused O_DIRECT has made the file already, so it exists now.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::info!(path = %how.path.display(), "no O_DIRECT here: page cache is used");
                if how.create_new && !is_device {
                    let again = OpenFile {
                        create_new: false,
                        direct: false,
                        ..how.clone()
                    };
                    return open_at(&again, is_device);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok((open(exclusive)?, false))
}

/// Takes the exclusive lock on this open file description. `flock` knows no time limit, so a thread
/// of its own waits when the lock is taken; on time-out it is left behind, and the descriptor with
/// it, for a caller who is about to give up.
fn lock(file: File, wait: Duration, path: &Path) -> Result<File, RuntimeError> {
    let what = || format!("lock {}", path.display());
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) if !wait.is_zero() => {}
        Err(error) => return Err(RuntimeError::new(what(), error)),
    }
    let (sender, receiver) = bounded(1);
    let waiting = move || {
        let result = flock(&file, FlockOperation::LockExclusive);
        if sender.send(result.map(|()| file)).is_err() {
            tracing::debug!("lock came after the time limit");
        }
    };
    std::thread::Builder::new()
        .name("trilith-lock".to_owned())
        .spawn(waiting)
        .map_err(|error| RuntimeError::new(what(), error))?;
    match receiver.recv_timeout(wait) {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) => Err(RuntimeError::new(what(), error)),
        Err(_) => Err(RuntimeError::own(
            what(),
            io::ErrorKind::WouldBlock,
            format!("another process holds it after {} ms", wait.as_millis()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_open_is_refused_while_the_first_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let how = OpenFile {
            create: true,
            ..OpenFile::existing(&path)
        };
        let first = DataFile::open(&how).unwrap();
        assert_eq!(
            DataFile::open(&how).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let brief = OpenFile {
            lock: Some(Duration::from_millis(5)),
            ..how.clone()
        };
        assert_eq!(
            DataFile::open(&brief).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(first);
        let patient = OpenFile {
            lock: Some(Duration::from_secs(20)),
            ..how
        };
        assert!(
            DataFile::open(&patient).is_ok(),
            "the lock is free after the holder is gone"
        );
    }

    #[test]
    fn length_and_allocation_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let how = OpenFile {
            create_new: true,
            create: true,
            direct: false,
            ..OpenFile::existing(dir.path().join("data"))
        };
        let file = DataFile::open(&how).unwrap();
        assert!(file.is_empty().unwrap());
        file.set_len(1 << 20).unwrap();
        assert_eq!(
            (file.len().unwrap(), file.allocated_bytes().unwrap()),
            (1 << 20, 0)
        );
        file.allocate(0, 65536).unwrap();
        assert!(file.allocated_bytes().unwrap() >= 65536);
        file.write_at(4096, b"abc").unwrap();
        file.sync().unwrap();
        let mut bytes = [0; 3];
        file.read_at(4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        assert!(file.read_at(1 << 20, &mut bytes).is_err());
        assert_eq!(file.kind(), FileKind::Regular);
        assert!(
            DataFile::open(&how).is_err(),
            "create_new refuses an existing file"
        );
    }

    #[test]
    fn directory_is_no_data_file() {
        let dir = tempfile::tempdir().unwrap();
        let how = OpenFile {
            write: false,
            direct: false,
            ..OpenFile::existing(dir.path())
        };
        assert!(DataFile::open(&how).is_err());
    }
}
