//! What a server serves, checked once, and what it tells about itself.

use crate::limits::{DESCRIPTION_BYTES_MAX, EXPORT_NAME_BYTES_MAX, REQUEST_BYTES_MAX};
use alloc::string::String;
use core::fmt;
use trilith_block::VolumeInfo;
use trilith_block::limits::VOLUME_BYTES_MAX;

/// The one export of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdConfig {
    /// Name of the export: the volume's name. The empty name of a client means this export too.
    pub export_name: String,
    /// Text for humans, told by LIST and INFO. May be empty.
    pub description: String,
    /// Serve reads only.
    pub read_only: bool,
    /// The volume behind it.
    pub volume: VolumeInfo,
}

/// Why a configuration is not usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigProblem {
    /// The name is longer than [`EXPORT_NAME_BYTES_MAX`] or has a NUL.
    ExportName,
    /// The description is longer than [`DESCRIPTION_BYTES_MAX`] or has a NUL.
    Description,
    /// The capacity is above [`VOLUME_BYTES_MAX`].
    Capacity,
    /// The preferred block is no power of two from 512 bytes to 32 MiB.
    BlockBytes,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigProblem::ExportName => {
                write!(
                    f,
                    "check export name: expected at most {EXPORT_NAME_BYTES_MAX} bytes, no NUL"
                )
            }
            ConfigProblem::Description => {
                write!(
                    f,
                    "check description: expected at most {DESCRIPTION_BYTES_MAX} bytes, no NUL"
                )
            }
            ConfigProblem::Capacity => {
                write!(
                    f,
                    "check capacity: expected at most {VOLUME_BYTES_MAX} bytes"
                )
            }
            ConfigProblem::BlockBytes => {
                f.write_str("check preferred block: expected a power of two from 512 to 32 MiB")
            }
        }
    }
}

impl core::error::Error for ConfigProblem {}

impl NbdConfig {
    /// Checks the values against their limits.
    ///
    /// # Errors
    /// The first value that is outside its limits.
    pub fn check(&self) -> Result<(), ConfigProblem> {
        let fits = |text: &str, bytes_max| text.len() <= bytes_max && !text.contains('\0');
        if !fits(&self.export_name, EXPORT_NAME_BYTES_MAX) {
            return Err(ConfigProblem::ExportName);
        }
        if !fits(&self.description, DESCRIPTION_BYTES_MAX) {
            return Err(ConfigProblem::Description);
        }
        if self.volume.capabilities.capacity_bytes > VOLUME_BYTES_MAX {
            return Err(ConfigProblem::Capacity);
        }
        let preferred = self.volume.capabilities.block_bytes;
        let bounds = 512..=u32::try_from(REQUEST_BYTES_MAX).unwrap_or(u32::MAX);
        if !preferred.is_power_of_two() || !bounds.contains(&preferred) {
            return Err(ConfigProblem::BlockBytes);
        }
        Ok(())
    }

    /// True when a client's name means this export.
    pub(crate) fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export_name.as_bytes()
    }

    /// Size of the export in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.volume.capabilities.capacity_bytes
    }
}

/// Counters and gauges of a server.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NbdStatus {
    /// Connections that are open now.
    pub connections: u64,
    /// Connections accepted since the start.
    pub connections_accepted: u64,
    /// Connections closed at once because of [`crate::limits::CONNECTIONS_MAX`].
    pub connections_refused: u64,
    /// Connections that were closed because negotiation took too long or too many options.
    pub negotiations_cut: u64,
    /// Requests that clients have sent, refused ones included.
    pub requests: u64,
    /// Requests in flight now, those of gone connections included.
    pub requests_in_flight: u64,
    /// Requests answered with an error.
    pub requests_failed: u64,
    /// Bytes of the volume sent to clients.
    pub bytes_read: u64,
    /// Bytes written for clients (acknowledged by the engine).
    pub bytes_written: u64,
    /// Payload bytes in flight now.
    pub payload_bytes: u64,
    /// Connections that wait for payload memory now.
    pub connections_waiting: u64,
}
