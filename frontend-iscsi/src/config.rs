//! What a target serves and to whom, checked once, and what it tells about itself.

use crate::limits::{LIST_ENTRIES_MAX, NAME_BYTES_MAX, SECRET_BYTES_MAX, SECRET_BYTES_MIN};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use trilith_block::VolumeInfo;
use trilith_block::limits::VOLUME_BYTES_MAX;

/// A CHAP name and its secret. Printing it leaves the secret out.
#[derive(Clone, PartialEq, Eq)]
pub struct ChapUser {
    /// The name, 1 to 223 bytes.
    pub name: String,
    /// The secret, 12 to 256 bytes.
    pub secret: Vec<u8>,
}

impl fmt::Debug for ChapUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChapUser")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Who must prove what at login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChapConfig {
    /// Names and secrets of initiators; at least one.
    pub initiators: Vec<ChapUser>,
    /// Our own name and secret, for initiators that ask for mutual authentication.
    pub target: Option<ChapUser>,
}

/// The one target of a machine and its logical unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IscsiConfig {
    /// iSCSI name of the target: `iqn.`, `eui.` or `naa.`, lower case.
    pub target_name: String,
    /// Text for humans (TargetAlias). May be empty.
    pub alias: String,
    /// Addresses told by SendTargets, `host:port`, IPv6 hosts in brackets.
    pub portals: Vec<String>,
    /// Target portal group tag of these portals; also the relative target port.
    pub portal_group: u16,
    /// Number of the logical unit, 0 to 255. Other numbers hold nothing.
    pub lun: u8,
    /// Logical block size in bytes, 512 or 4096. The physical block is 4096 bytes in both cases.
    pub logical_block_bytes: u32,
    /// Serve reads only.
    pub read_only: bool,
    /// Names of the initiators that may log in. Empty: all.
    pub initiators: Vec<String>,
    /// CHAP, for normal and discovery sessions. `None`: no authentication.
    pub chap: Option<ChapConfig>,
    /// The wiring keeps reservations over restarts ([`crate::IscsiTarget::unkept`]). When not,
    /// initiators that ask for it (APTPL) are refused.
    pub keeps_reservations: bool,
    /// 32 random bytes, from which challenges are made. Fresh at each start.
    pub seed: [u8; 32],
    /// The volume behind it.
    pub volume: VolumeInfo,
}

/// Why a configuration is not usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigProblem {
    /// The target's name is no iSCSI name.
    TargetName,
    /// The alias is too long or has a NUL.
    Alias,
    /// A portal is empty or there are too many.
    Portals,
    /// The portal group tag is 0.
    PortalGroup,
    /// The logical block is neither 512 nor 4096 bytes.
    LogicalBlock,
    /// An initiator's name is no iSCSI name or there are too many.
    Initiators,
    /// A CHAP name or secret is too short or too long, there is no initiator or too many, or the
    /// target's secret is the same as an initiator's.
    Chap,
    /// The capacity is 0, no multiple of the block or above [`VOLUME_BYTES_MAX`].
    Capacity,
    /// The kept reservations are not what a target of this version gives to be kept.
    Kept,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfigProblem::TargetName => "check target name: expected an iqn., eui. or naa. name",
            ConfigProblem::Alias => "check alias: expected at most 223 bytes, no NUL",
            ConfigProblem::Portals => "check portals: expected host:port, at most 256",
            ConfigProblem::PortalGroup => "check portal group tag: expected 1 to 65535",
            ConfigProblem::LogicalBlock => "check logical block: expected 512 or 4096 bytes",
            ConfigProblem::Initiators => "check initiators: expected at most 256 iSCSI names",
            ConfigProblem::Chap => {
                "check CHAP: expected 1 to 256 initiators, secrets of 12 to 256 bytes that differ \
                 from the target's"
            }
            ConfigProblem::Capacity => "check capacity: expected a multiple of 4096 bytes",
            ConfigProblem::Kept => "check kept reservations: expected what a target has given",
        })
    }
}

impl core::error::Error for ConfigProblem {}

/// True for an iSCSI name (RFC 7143 4.2.7): a known type, at most 223 bytes, lower case letters,
/// digits, `-`, `.`, `:`.
pub(crate) fn is_iscsi_name(name: &str) -> bool {
    let known = ["iqn.", "eui.", "naa."].iter().any(|kind| {
        name.len() > kind.len()
            && name.as_bytes()[..kind.len()].eq_ignore_ascii_case(kind.as_bytes())
    });
    let legal = |c: char| {
        !c.is_ascii() || c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_' | '+')
    };
    known && name.len() <= NAME_BYTES_MAX && name.chars().all(legal)
}

fn is_user(user: &ChapUser) -> bool {
    let secret = SECRET_BYTES_MIN..=SECRET_BYTES_MAX;
    (1..=NAME_BYTES_MAX).contains(&user.name.len())
        && !user.name.contains('\0')
        && secret.contains(&user.secret.len())
}

impl ChapConfig {
    fn is_usable(&self) -> bool {
        let count = 1..=LIST_ENTRIES_MAX;
        count.contains(&self.initiators.len())
            && self.initiators.iter().all(is_user)
            && self.target.as_ref().is_none_or(|target| {
                is_user(target)
                    && self
                        .initiators
                        .iter()
                        .all(|user| user.secret != target.secret)
            })
    }
}

impl IscsiConfig {
    /// Checks the values against their limits.
    ///
    /// # Errors
    /// The first value that is outside its limits.
    pub fn check(&self) -> Result<(), ConfigProblem> {
        if !is_iscsi_name(&self.target_name) {
            return Err(ConfigProblem::TargetName);
        }
        if self.alias.len() > NAME_BYTES_MAX || self.alias.contains('\0') {
            return Err(ConfigProblem::Alias);
        }
        let portal_ok = |p: &String| !p.is_empty() && p.len() <= 255 && !p.contains('\0');
        if self.portals.len() > LIST_ENTRIES_MAX || !self.portals.iter().all(portal_ok) {
            return Err(ConfigProblem::Portals);
        }
        if self.portal_group == 0 {
            return Err(ConfigProblem::PortalGroup);
        }
        if !matches!(self.logical_block_bytes, 512 | 4096) {
            return Err(ConfigProblem::LogicalBlock);
        }
        if self.initiators.len() > LIST_ENTRIES_MAX
            || !self.initiators.iter().all(|name| is_iscsi_name(name))
        {
            return Err(ConfigProblem::Initiators);
        }
        if self.chap.as_ref().is_some_and(|chap| !chap.is_usable()) {
            return Err(ConfigProblem::Chap);
        }
        let capacity = self.volume.capabilities.capacity_bytes;
        if capacity == 0 || !capacity.is_multiple_of(4096) || capacity > VOLUME_BYTES_MAX {
            return Err(ConfigProblem::Capacity);
        }
        Ok(())
    }
}

/// Counters and gauges of a target.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IscsiStatus {
    /// Connections that are open now.
    pub connections: u64,
    /// Connections accepted since the start.
    pub connections_accepted: u64,
    /// Connections closed at once because of a limit.
    pub connections_refused: u64,
    /// Sessions in full feature phase now.
    pub sessions: u64,
    /// Logins that have failed, for whatever reason.
    pub logins_failed: u64,
    /// Logins that have failed authentication or authorization.
    pub logins_denied: u64,
    /// SCSI commands received.
    pub commands: u64,
    /// SCSI tasks in flight now, those of gone connections included.
    pub tasks_in_flight: u64,
    /// SCSI commands that ended with a status other than GOOD.
    pub commands_failed: u64,
    /// PDUs with a wrong digest.
    pub digest_errors: u64,
    /// PDUs rejected.
    pub rejects: u64,
    /// Bytes of the volume sent to initiators.
    pub bytes_read: u64,
    /// Bytes written for initiators (acknowledged by the engine).
    pub bytes_written: u64,
    /// Payload bytes in flight now.
    pub payload_bytes: u64,
    /// Tasks that wait for payload memory now.
    pub tasks_waiting: u64,
}
