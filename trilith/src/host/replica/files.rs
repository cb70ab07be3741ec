//! The files of a store: two in a directory, or one block device; a witness has one in a directory.

use crate::host::replica::disk::StoreDisk;
use crate::host::replica::format::{DATA, META, WITNESS};
use anyhow::{Context, bail};
use core::time::Duration;
use std::path::Path;
use trilith_runtime::{DataFile, FileKind, Io, OpenFile};

/// Open files, with the lock of the data (K1), or of the only file.
#[derive(Debug)]
pub(crate) enum StoreFiles {
    /// A directory.
    Directory {
        /// Metadata.
        meta: DataFile,
        /// Data.
        data: DataFile,
    },
    /// A block device has both.
    Device(DataFile),
    /// A witness has metadata alone.
    Witness(DataFile),
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
        if dir.join(WITNESS).exists() {
            let meta = open(&dir.join(WITNESS), write, Some(wait))?;
            is_file(&meta)?;
            return Ok(StoreFiles::Witness(meta));
        }
        if !dir.join(META).exists() {
            bail!(
                "open store: expected {META} and {DATA} in {}, found none",
                dir.display()
            );
        }
        let data = open(&dir.join(DATA), write, Some(wait))?;
        let meta = open(&dir.join(META), write, None)?;
        is_file(&data)?;
        is_file(&meta)?;
        Ok(StoreFiles::Directory { meta, data })
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
        Ok(StoreFiles::Device(data))
    }

    /// True for files, false for a device.
    pub(crate) fn is_regular(&self) -> bool {
        !matches!(self, StoreFiles::Device(_))
    }

    /// True for those of a witness.
    pub(crate) fn is_witness(&self) -> bool {
        matches!(self, StoreFiles::Witness(_))
    }

    /// Where the metadata is.
    pub(crate) fn meta(&self) -> &DataFile {
        match self {
            StoreFiles::Directory { meta: file, .. }
            | StoreFiles::Device(file)
            | StoreFiles::Witness(file) => file,
        }
    }

    /// Where the data is.
    ///
    /// # Errors
    /// A witness has none.
    pub(crate) fn data(&self) -> anyhow::Result<&DataFile> {
        match self {
            StoreFiles::Directory { data: file, .. } | StoreFiles::Device(file) => Ok(file),
            StoreFiles::Witness(_) => bail!("this is a witness: it holds no data"),
        }
    }

    /// Gives the files to a loop.
    ///
    /// # Errors
    /// When the loop has no place for them.
    pub(crate) fn adopt(self, io: &mut Io) -> anyhow::Result<StoreDisk> {
        let mut adopt = |file| io.adopt(file).context("adopt the file of a store");
        Ok(match self {
            StoreFiles::Directory { meta, data } => {
                StoreDisk::new(adopt(meta)?, Some(adopt(data)?))
            }
            StoreFiles::Device(file) => {
                let file = adopt(file)?;
                StoreDisk::new(file, Some(file))
            }
            StoreFiles::Witness(meta) => StoreDisk::new(adopt(meta)?, None),
        })
    }
}

fn is_file(file: &DataFile) -> anyhow::Result<()> {
    if file.kind() != FileKind::Regular {
        bail!(
            "open store: expected a file, found a device at {}",
            file.path().display()
        );
    }
    Ok(())
}
