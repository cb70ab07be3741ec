//! The files of a store: two in a directory, or one block device.

use crate::host::replica::disk::StoreDisk;
use crate::host::replica::format::{DATA, META};
use anyhow::{Context, bail};
use core::time::Duration;
use std::path::Path;
use trilith_runtime::{DataFile, FileKind, Io, OpenFile};

/// Open files, with the lock of the data (K1).
#[derive(Debug)]
pub(crate) struct StoreFiles {
    /// Metadata; `None`: on the same device as the data.
    pub(crate) meta: Option<DataFile>,
    /// Data.
    pub(crate) data: DataFile,
}

fn open(path: &Path, write: bool, lock: Option<Duration>) -> anyhow::Result<DataFile> {
    let how = OpenFile {
        path: path.to_owned(),
        write,
        create: false,
        create_new: false,
        // Who only reads goes through the page cache, which does not ask for aligned memory.
        direct: write,
        lock,
    };
    DataFile::open(&how).map_err(|error| {
        let locked = error.kind() == std::io::ErrorKind::WouldBlock;
        let error = anyhow::Error::from(error);
        if locked {
            error.context("a replica runs on it")
        } else {
            error
        }
    })
}

impl StoreFiles {
    /// Whatever is at `path`.
    ///
    /// # Errors
    /// As the other two.
    pub(crate) fn find(path: &Path, write: bool, wait: Duration) -> anyhow::Result<StoreFiles> {
        if path.is_dir() {
            StoreFiles::directory(path, write, wait)
        } else {
            StoreFiles::device(path, write, wait)
        }
    }

    /// The files of a directory. The data is locked first: when that is done, the last write of
    /// the process before has landed.
    ///
    /// # Errors
    /// When there is no store, or a replica runs on it.
    pub(crate) fn directory(dir: &Path, write: bool, wait: Duration) -> anyhow::Result<StoreFiles> {
        if !dir.join(META).exists() {
            bail!(
                "open store: expected {META} and {DATA} in {}, found none",
                dir.display()
            );
        }
        let data = open(&dir.join(DATA), write, Some(wait))?;
        let meta = open(&dir.join(META), write, None)?;
        for file in [&data, &meta] {
            if file.kind() != FileKind::Regular {
                bail!(
                    "open store: expected a file, found a device at {}",
                    file.path().display()
                );
            }
        }
        Ok(StoreFiles {
            meta: Some(meta),
            data,
        })
    }

    /// A block device.
    ///
    /// # Errors
    /// When it is none, or is in use.
    pub(crate) fn device(path: &Path, write: bool, wait: Duration) -> anyhow::Result<StoreFiles> {
        let data = open(path, write, Some(wait))?;
        if data.kind() != FileKind::Device {
            bail!(
                "open store: expected a block device, found a file at {}",
                path.display()
            );
        }
        Ok(StoreFiles { meta: None, data })
    }

    /// True for files, false for a device.
    pub(crate) fn is_regular(&self) -> bool {
        self.meta.is_some()
    }

    /// Gives the files to a loop.
    ///
    /// # Errors
    /// When the loop has no place for them.
    pub(crate) fn adopt(self, io: &mut Io) -> anyhow::Result<StoreDisk> {
        let data = io.adopt(self.data).context("adopt data file")?;
        let meta = match self.meta {
            Some(meta) => io.adopt(meta).context("adopt metadata file")?,
            None => data,
        };
        Ok(StoreDisk::new(meta, data))
    }
}
