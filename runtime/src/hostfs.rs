//! Facts about this host's file systems: what lies in memory, how much room is left, which boot
//! this is.

use crate::error::RuntimeError;
use rustix::fs::{Access, AtFlags, CWD, accessat, statfs, statvfs};
use std::io;
use std::path::{Path, PathBuf};

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Room on a file system, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Its size.
    pub total_bytes: u64,
    /// What an unprivileged process may still use.
    pub free_bytes: u64,
}

/// True when `dir` lies in the kernel's memory (tmpfs or ramfs), so that it outlives a process but
/// not the kernel.
///
/// # Errors
/// When `dir` cannot be examined.
pub fn is_memory_backed(dir: &Path) -> Result<bool, RuntimeError> {
    let found = statfs(dir)
        .map_err(|error| RuntimeError::new(format!("examine {}", dir.display()), error))?;
    // The kernel's type is signed on some machines; the magic is 32 bits everywhere.
    let magic = u64::from_le_bytes(found.f_type.to_le_bytes()) & 0xffff_ffff;
    Ok(magic == TMPFS_MAGIC || magic == RAMFS_MAGIC)
}

/// The directory for memory that outlives the process: `wanted` (which must qualify), else `/run`,
/// else `/dev/shm`. `None`: no place, so every restart counts as a power failure. Directories that
/// are wiped at logout (`/run/user`) are never chosen.
///
/// # Errors
/// When `wanted` is given and is not on tmpfs, or lies below `/run/user`.
pub fn pick_window_dir(wanted: Option<&Path>) -> Result<Option<PathBuf>, RuntimeError> {
    if let Some(dir) = wanted {
        let what = || format!("use window directory {}", dir.display());
        if !is_memory_backed(dir)? {
            return Err(RuntimeError::own(
                what(),
                io::ErrorKind::InvalidInput,
                "it is not on tmpfs",
            ));
        }
        if dir.starts_with("/run/user") {
            let why = "it is wiped at logout";
            return Err(RuntimeError::own(what(), io::ErrorKind::InvalidInput, why));
        }
        return Ok(Some(dir.to_path_buf()));
    }
    let usable = |dir: &str| {
        let dir = Path::new(dir);
        let writable = accessat(
            CWD,
            dir,
            Access::WRITE_OK | Access::EXEC_OK,
            AtFlags::EACCESS,
        );
        is_memory_backed(dir).unwrap_or(false) && writable.is_ok()
    };
    Ok(["/run", "/dev/shm"]
        .iter()
        .find(|dir| usable(dir))
        .map(PathBuf::from))
}

/// Room on the file system of `path`.
///
/// # Errors
/// When it cannot be examined.
pub fn free_space(path: &Path) -> Result<Space, RuntimeError> {
    let found = statvfs(path)
        .map_err(|error| RuntimeError::new(format!("examine {}", path.display()), error))?;
    Ok(Space {
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

/// Identity of this boot of the kernel: 16 bytes that change with every boot.
///
/// # Errors
/// When /proc does not say.
pub fn boot_id() -> Result<[u8; 16], RuntimeError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let what = || format!("read {path}");
    let text = std::fs::read_to_string(path).map_err(|error| RuntimeError::new(what(), error))?;
    parse_uuid(text.trim()).ok_or_else(|| {
        RuntimeError::own(
            what(),
            io::ErrorKind::InvalidData,
            format!("found {text:?}"),
        )
    })
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| *c != '-')
        .map_while(|c| c.to_digit(16))
        .collect();
    if digits.len() != 32 || text.len() != 36 {
        return None;
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(pair[0] * 16 + pair[1]).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_is_stable_and_not_zero() {
        let id = boot_id().unwrap();
        assert_eq!(id, boot_id().unwrap());
        assert_ne!(id, [0; 16]);
        assert_eq!(parse_uuid("zz"), None);
        assert_eq!(parse_uuid("0123456789abcdef0123456789abcdef0123"), None);
    }

    #[test]
    fn proc_is_not_memory_backed_and_is_refused_as_window_dir() {
        assert!(!is_memory_backed(Path::new("/proc")).unwrap());
        assert!(pick_window_dir(Some(Path::new("/proc"))).is_err());
        assert!(is_memory_backed(Path::new("/nonexistent")).is_err());
        if let Some(dir) = pick_window_dir(None).unwrap() {
            assert!(is_memory_backed(&dir).unwrap());
        }
    }

    #[test]
    fn free_space_is_at_most_the_total() {
        let space = free_space(Path::new("/")).unwrap();
        assert!(space.free_bytes <= space.total_bytes && space.total_bytes > 0);
    }
}
