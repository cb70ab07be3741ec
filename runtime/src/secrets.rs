//! Randomness, and small files written so that a crash leaves the old or the new content.

use crate::error::RuntimeError;
use crate::limits::SMALL_FILE_BYTES_MAX;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Fills `bytes` from the kernel's generator.
///
/// # Errors
/// When the kernel has none.
pub fn random_bytes(bytes: &mut [u8]) -> Result<(), RuntimeError> {
    getrandom::fill(bytes).map_err(|error| {
        RuntimeError::own("draw random bytes", io::ErrorKind::Other, error.to_string())
    })
}

/// Reads a secret: a regular file that group and others may not touch.
///
/// # Errors
/// When it is missing, longer than [`SMALL_FILE_BYTES_MAX`], or readable by others.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, RuntimeError> {
    let what = || format!("read secret {}", path.display());
    let file = File::open(path).map_err(|error| RuntimeError::new(what(), error))?;
    let entry = file
        .metadata()
        .map_err(|error| RuntimeError::new(what(), error))?;
    if !entry.is_file() || entry.len() > SMALL_FILE_BYTES_MAX {
        let why = format!("expected a file of at most {SMALL_FILE_BYTES_MAX} bytes");
        return Err(RuntimeError::own(what(), io::ErrorKind::InvalidData, why));
    }
    if entry.mode() & 0o077 != 0 {
        let why = format!("expected mode 0600, found {:04o}", entry.mode() & 0o7777);
        return Err(RuntimeError::own(
            what(),
            io::ErrorKind::PermissionDenied,
            why,
        ));
    }
    let mut bytes = Vec::new();
    let limit = SMALL_FILE_BYTES_MAX;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| RuntimeError::new(what(), e))?;
    Ok(bytes)
}

/// Writes a new secret with mode 0600, as [`replace_file`] does.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), RuntimeError> {
    replace_file(path, bytes, 0o600)
}

/// Writes `bytes` to `path` with `mode`. Crash argument: the bytes are durable under another name
/// before the rename, which replaces the old file as one step, and the directory is synced last; so
/// a reader sees all of the old file or all of the new one, and the new one for sure after `Ok`.
///
/// # Errors
/// When a step fails; then the old file is still there.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RuntimeError> {
    let what = || format!("write {}", path.display());
    let (Some(name), Some(dir)) = (path.file_name(), path.parent()) else {
        return Err(RuntimeError::own(
            what(),
            io::ErrorKind::InvalidInput,
            "expected a file name",
        ));
    };
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let mut temporary = name.to_os_string();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = dir.join(temporary);
    let result = write_and_rename(&temporary, path, dir, bytes, mode);
    if result.is_err()
        && temporary.exists()
        && let Err(error) = fs::remove_file(&temporary)
    {
        tracing::debug!(path = %temporary.display(), %error, "cannot remove temporary file");
    }
    result.map_err(|error| RuntimeError::new(what(), error))
}

fn write_and_rename(
    temporary: &Path,
    path: &Path,
    dir: &Path,
    bytes: &[u8],
    mode: u32,
) -> io::Result<()> {
    if temporary.exists() {
        fs::remove_file(temporary)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secret_comes_back_and_has_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_secret(&path, b"one").unwrap();
        write_secret(&path, b"two").unwrap();
        assert_eq!(read_secret(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn secret_readable_by_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_secret(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(
            read_secret(&path).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn random_bytes_differ_between_draws() {
        let (mut one, mut two) = ([0; 32], [0; 32]);
        random_bytes(&mut one).unwrap();
        random_bytes(&mut two).unwrap();
        assert_ne!(one, two);
    }
}
