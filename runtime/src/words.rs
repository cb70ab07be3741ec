//! Memory that outlives the process but not the kernel: [`trilith_block::Words`] over a file on
//! tmpfs, and a heap stand-in for a process without such a place.

use crate::error::RuntimeError;
use core::sync::atomic::{AtomicU64, Ordering};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use trilith_block::Words;

const WORD_BYTES: usize = 8;

/// Words in a shared mapping of a file. Each store is one aligned store with release order, so a
/// process killed between two stores leaves exactly the first.
#[derive(Debug)]
pub struct MappedWords {
    map: MmapRaw,
    words: usize,
}

impl MappedWords {
    /// Opens or creates (mode 0600) the file and maps `words` words of it. `true` in the second
    /// place: the file was new or had another length, so all words read zero.
    ///
    /// # Errors
    /// When the file cannot be opened, sized or mapped, or its directory is full: its pages are
    /// allocated here, so that no store can fail later.
    pub fn open(path: &Path, words: usize) -> Result<(MappedWords, bool), RuntimeError> {
        let what = || format!("map {words} words of {}", path.display());
        let fail = |error: io::Error| RuntimeError::new(what(), error);
        let bytes = words.checked_mul(WORD_BYTES).filter(|bytes| *bytes > 0);
        let Some(bytes) = bytes else {
            return Err(RuntimeError::own(
                what(),
                io::ErrorKind::InvalidInput,
                "no such length",
            ));
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        let fresh = found != bytes as u64;
        if fresh {
            file.set_len(0).map_err(fail)?;
            file.set_len(bytes as u64).map_err(fail)?;
        }
        let mode = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, mode, 0, bytes as u64).map_err(|e| fail(e.into()))?;
        let map = MmapOptions::new().len(bytes).map_raw(&file).map_err(fail)?;
        Ok((MappedWords { map, words }, fresh))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        let start = self.map.as_mut_ptr().cast::<u64>();
        // SAFETY: `index` is below the number of words in the mapping.
        let at = unsafe { start.add(index) };
        // SAFETY: the mapping starts at a page boundary, so the word is aligned; it stays mapped as
        // long as `self`; all access to it goes through atomics.
        unsafe { AtomicU64::from_ptr(at) }
    }
}

impl Words for MappedWords {
    fn len(&self) -> usize {
        self.words
    }

    fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    fn store(&mut self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }
}

/// Words that die with the process.
#[derive(Clone, Debug)]
pub struct HeapWords {
    words: Vec<u64>,
}

impl HeapWords {
    /// So many words, all zero.
    pub fn new(words: usize) -> HeapWords {
        HeapWords {
            words: vec![0; words],
        }
    }
}

impl Words for HeapWords {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.words[index]
    }

    fn store(&mut self, index: usize, value: u64) {
        self.words[index] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_words_are_there_again_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("window");
        let (mut words, fresh) = MappedWords::open(&path, 1000).unwrap();
        assert!(fresh && words.len() == 1000 && words.load(999) == 0);
        words.store(0, 1);
        words.store(999, u64::MAX - 1);
        drop(words);
        let (words, fresh) = MappedWords::open(&path, 1000).unwrap();
        assert_eq!(
            (fresh, words.load(0), words.load(999)),
            (false, 1, u64::MAX - 1)
        );
        drop(words);
        let (words, fresh) = MappedWords::open(&path, 999).unwrap();
        assert_eq!(
            (fresh, words.load(0)),
            (true, 0),
            "another length starts from zero"
        );
    }

    #[test]
    fn heap_words_start_at_zero() {
        let mut words = HeapWords::new(3);
        words.store(2, 7);
        assert_eq!((words.len(), words.load(0), words.load(2)), (3, 0, 7));
    }
}
