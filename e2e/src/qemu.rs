//! qemu-io, by scripts.

use crate::cluster::succeed;
use anyhow::{Result, ensure};

/// Every kind of request that qemu's drivers know, each read back.
pub const ALL_REQUESTS: &[&str] = &[
    "write -P 0x55 0 1M",
    "read -P 0x55 0 1M",
    "write -z 0 64k",
    "read -P 0 0 64k",
    "write -z -u 64k 64k",
    "read -P 0 64k 64k",
    "read -P 0x55 128k 896k",
    "discard 1M 1M",
    "read -P 0 1M 1M",
    "flush",
    "write -f -P 7 3M 4k",
    "read -P 7 3M 4k",
    "write -P 9 12345 678",
    "read -P 9 12345 678",
];

/// Runs a script on an image.
///
/// # Errors
/// When qemu-io fails, or a command of the script does.
pub fn io(script: &[&str], uri: &str) -> Result<()> {
    run(&["-f", "raw"], script, uri)
}

/// As [`io`], for an image described by `driver=...` options.
///
/// # Errors
/// As [`io`].
pub fn io_by_options(script: &[&str], options: &str) -> Result<()> {
    run(&["--image-opts"], script, options)
}

fn run(format: &[&str], script: &[&str], image: &str) -> Result<()> {
    let mut words = format.to_vec();
    for command in script {
        words.extend_from_slice(&["-c", command]);
    }
    words.push(image);
    let said = succeed("qemu-io", &words)?;
    ensure!(!said.contains("failed"), "{said}");
    Ok(())
}
