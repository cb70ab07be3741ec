//! What the driver can do, and what of it is used: decided here, from the answer to GET_FEATURES.

use crate::limits::{BOUNCE_DEPTH, BOUNCE_REQUEST_BYTES_MAX, DEPTH};
use core::fmt;

/// Features of a driver or a device, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

macro_rules! features {
    ($($(#[$text:meta])* $name:ident = $bit:literal;)*) => {
        impl Features {
            $($(#[$text])* pub const $name: Features = Features(1 << $bit);)*
            /// Those that are known, with their names.
            pub const NAMED: &[(Features, &str)] = &[$((Features::$name, stringify!($name)),)*];
        }
    };
}

features! {
    /// Requests' pages as registered buffers of a ring.
    SUPPORT_ZERO_COPY = 0;
    /// Always on: commands complete in the server's context.
    URING_CMD_COMP_IN_TASK = 1;
    /// Write payload is asked for.
    NEED_GET_DATA = 2;
    /// A device outlives its server.
    USER_RECOVERY = 3;
    /// And so do the requests that the dead server had: the next one gets them again.
    USER_RECOVERY_REISSUE = 4;
    /// Devices of ordinary users.
    UNPRIVILEGED_DEV = 5;
    /// Commands are encoded as ioctls.
    CMD_IOCTL_ENCODE = 6;
    /// Payload by pread and pwrite (Linux 6.5).
    USER_COPY = 7;
    /// Zoned devices.
    ZONED = 8;
    /// Without a server requests fail.
    USER_RECOVERY_FAIL_IO = 9;
    /// The size can change.
    UPDATE_SIZE = 10;
    /// Requests' pages are registered by the driver.
    AUTO_BUF_REG = 11;
    /// A live device can be quiesced.
    QUIESCE = 12;
    /// Each tag may have a thread of its own.
    PER_IO_DAEMON = 13;
    /// Buffers may be registered by any thread.
    BUF_REG_OFF_DAEMON = 14;
    /// Many requests in one command.
    BATCH_IO = 15;
    /// Integrity payload.
    INTEGRITY = 16;
    /// A stop that fails while the device is open.
    SAFE_STOP_DEV = 17;
    /// The kernel does not look for partitions.
    NO_AUTO_PART_SCAN = 18;
    /// Payload in memory shared with the submitter.
    SHMEM_ZC = 19;
}

impl Features {
    /// True when all of `other` are there.
    pub fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those in either.
    #[must_use]
    pub fn with(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut gap = "";
        for (feature, name) in Features::NAMED {
            if self.contains(*feature) {
                write!(f, "{gap}{name}")?;
                gap = " ";
                rest &= !feature.0;
            }
        }
        if rest != 0 || self.0 == 0 {
            write!(f, "{gap}{rest:#x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

/// What a driver lacks that nothing can stand in for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this kernel's ublk driver lacks {missing}: Linux 6.5 or newer is needed")]
pub struct Shortage {
    /// The features missing.
    pub missing: Features,
}

/// How a device is going to be used with the features of this driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Features to add a device with.
    pub features: Features,
    /// The device and its requests outlive the server.
    pub recovers: bool,
}

impl Plan {
    /// Decides, for a process that may do everything with devices (`is_privileged`) or an ordinary one.
    ///
    /// Payload goes by user copy: the engine takes checksums of every byte, so the bytes must be in
    /// memory of ours, and zero copy, which hides them, has nothing to give (docs/adr/0007). Ordinary
    /// users are allowed neither that nor recovery: the kernel copies payload to places of the slots,
    /// and the device ends with its server. Recovery is used where it is whole; half of it (a device
    /// whose requests in flight fail) would break the promise that it exists for, so then there is
    /// none. Batches are taken where they are.
    ///
    /// # Errors
    /// When the encoding of commands is missing, or devices of ordinary users where one is needed.
    pub fn new(driver: Features, is_privileged: bool) -> Result<Plan, Shortage> {
        let mut needed = Features::CMD_IOCTL_ENCODE;
        if !is_privileged {
            needed = needed.with(Features::UNPRIVILEGED_DEV);
        }
        if !driver.contains(needed) {
            let missing = Features(needed.0 & !driver.0);
            return Err(Shortage { missing });
        }
        let recovery = Features::USER_RECOVERY.with(Features::USER_RECOVERY_REISSUE);
        let recovers = is_privileged && driver.contains(recovery);
        let mut features = needed;
        if recovers {
            features = features.with(recovery);
        }
        if is_privileged {
            features = features.with(Features(driver.0 & Features::USER_COPY.0));
        }
        features = features.with(Features(driver.0 & Features::BATCH_IO.0));
        Ok(Plan { features, recovers })
    }

    /// Requests in flight in each queue: few where each has a place of its own for payload.
    pub fn depth(&self) -> u16 {
        match self.features.contains(Features::USER_COPY) {
            true => DEPTH,
            false => BOUNCE_DEPTH,
        }
    }

    /// Longest read or write in bytes, at most `wanted`.
    pub fn request_bytes_max(&self, wanted: u32) -> u32 {
        match self.features.contains(Features::USER_COPY) {
            true => wanted,
            false => wanted.min(BOUNCE_REQUEST_BYTES_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const LTS: Features = Features(0x1fe);
    const NEWEST: Features = Features(0x1f_ffff);

    #[test]
    fn both_kernels_that_are_tested_on_give_recovery_and_user_copy_and_the_newer_batches() {
        for (driver, features) in [(LTS, 0b1101_1000), (NEWEST, 0x8000 | 0b1101_1000)] {
            let plan = Plan::new(driver, true).unwrap();
            assert!(plan.recovers);
            assert_eq!(plan.features, Features(features));
            assert_eq!(
                (plan.depth(), plan.request_bytes_max(1 << 20)),
                (128, 1 << 20)
            );
        }
    }

    #[test]
    fn ordinary_users_get_neither_user_copy_nor_recovery() {
        for (driver, features) in [(LTS, 0b0110_0000), (NEWEST, 0x8000 | 0b0110_0000)] {
            let plan = Plan::new(driver, false).unwrap();
            assert!(!plan.recovers);
            assert_eq!(plan.features, Features(features));
            assert_eq!(plan.depth(), BOUNCE_DEPTH);
            assert_eq!(plan.request_bytes_max(1 << 20), BOUNCE_REQUEST_BYTES_MAX);
            assert_eq!(plan.request_bytes_max(4096), 4096);
        }
        let without = Features(LTS.0 & !Features::UNPRIVILEGED_DEV.0);
        let shortage = Plan::new(without, false).unwrap_err();
        assert_eq!(shortage.missing, Features::UNPRIVILEGED_DEV);
    }

    #[test]
    fn driver_without_user_copy_copies_itself_and_one_without_anything_is_refused() {
        let plan = Plan::new(Features(0x7e), true).unwrap();
        assert!(plan.recovers && !plan.features.contains(Features::USER_COPY));
        assert_eq!(plan.depth(), BOUNCE_DEPTH);
        let shortage = Plan::new(Features(0), true).unwrap_err();
        assert_eq!(shortage.missing, Features::CMD_IOCTL_ENCODE);
        let text = shortage.to_string();
        assert!(text.contains("lacks CMD_IOCTL_ENCODE: Linux 6.5"), "{text}");
    }

    #[test]
    fn half_of_recovery_is_none() {
        let base = Features::USER_COPY.with(Features::CMD_IOCTL_ENCODE);
        for half in [
            Features::USER_RECOVERY,
            Features::USER_RECOVERY_REISSUE,
            Features(0),
        ] {
            let plan = Plan::new(base.with(half), true).unwrap();
            assert!(!plan.recovers);
            assert_eq!(plan.features, base);
        }
    }

    #[test]
    fn unknown_features_are_shown_as_a_number() {
        assert_eq!(Features(1 << 20).to_string(), "0x100000");
        assert_eq!(Features(1 << 20 | 1 << 7).to_string(), "USER_COPY 0x100000");
        assert_eq!(Features(0).to_string(), "0x0");
    }
}
