//! The SCSI disk: commands in, plans out. It knows nothing of iSCSI.

pub(crate) mod access;
pub(crate) mod copy;
pub(crate) mod disk;
pub(crate) mod inquiry;
pub(crate) mod log;
pub(crate) mod mode;
pub(crate) mod opcodes;
pub(crate) mod plan;
pub(crate) mod reserve;
pub(crate) mod sense;
pub(crate) mod status;
