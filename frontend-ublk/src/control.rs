//! The driver's commands, one method each, and what their failures mean to people. All of them
//! block; starting a device waits until every slot of it has been fetched.

use crate::abi::{self, ANY_DEVICE, DeviceInfo, FEATURES_BYTES, INFO_BYTES, State, command};
use crate::features::{Features, Plan, Shortage};
use crate::limits::DEVICES_MAX;
use crate::params::Params;
use crate::ring::ControlRing;
use std::io;

const CONTROL_PATH: &str = "/dev/ublk-control";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The driver is not there.
    #[error(
        "{CONTROL_PATH} is missing: load the driver with `modprobe ublk_drv` (Linux 6.5 or newer, \
         built with CONFIG_BLK_DEV_UBLK)"
    )]
    NoDriver,
    /// The driver is there and may not be used.
    #[error(
        "{CONTROL_PATH} may not be used: ublk devices need root (CAP_SYS_ADMIN), or udev rules that \
         allow them to ordinary users (docs/ublk-users.md)"
    )]
    NotAllowed,
    /// An ordinary user's device whose nodes are not the user's.
    #[error(
        "/dev/ublkc{0} does not belong to this user: the udev rules of docs/ublk-users.md are \
         missing; root can remove the device with `trilith ublk delete {0}`"
    )]
    NodeNotOurs(u32),
    /// The driver is too old.
    #[error(transparent)]
    TooOld(#[from] Shortage),
    /// A device is not what it should be.
    #[error("{0}")]
    Device(String),
    /// Anything else.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl ControlError {
    pub(crate) fn kernel(what: impl Into<String>, source: io::Error) -> ControlError {
        ControlError::Kernel {
            what: what.into(),
            source,
        }
    }

    /// The kernel's number, if it was the kernel.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            ControlError::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// True when trying again later cannot help: something is missing on this host.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            ControlError::NoDriver
                | ControlError::NotAllowed
                | ControlError::NodeNotOurs(_)
                | ControlError::TooOld(_)
        )
    }
}

type Result<T> = core::result::Result<T, ControlError>;

/// The control device.
#[derive(Debug)]
pub struct Control {
    ring: ControlRing,
    is_privileged: bool,
}

/// Whether this process may do everything with devices: CAP_SYS_ADMIN is among its rights.
fn is_privileged(status: &str) -> bool {
    const SYS_ADMIN: u32 = 21;
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = rights.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    rights.is_some_and(|rights| rights >> SYS_ADMIN & 1 == 1)
}

/// A device's node, as commands name it.
fn node(number: u32) -> String {
    format!("/dev/ublkc{number}")
}

impl Control {
    /// Opens it.
    ///
    /// # Errors
    /// When the driver is not there, may not be used, or io_uring does not work.
    pub fn open() -> Result<Control> {
        Control::open_at(CONTROL_PATH)
    }

    fn open_at(path: &str) -> Result<Control> {
        match ControlRing::open(path) {
            Ok(ring) => {
                let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
                Ok(Control {
                    ring,
                    is_privileged: is_privileged(&status),
                })
            }
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => ControlError::NoDriver,
                Some(libc::EACCES | libc::EPERM) => ControlError::NotAllowed,
                _ => ControlError::kernel(format!("open {path}"), error),
            }),
        }
    }

    fn run(
        &mut self,
        (operation, verb): (u32, &str),
        device: u32,
        data: u64,
        buffer: Option<&mut [u8]>,
    ) -> Result<()> {
        self.ring
            .run(operation, device, data, buffer, 0)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) if device == ANY_DEVICE => {
                    ControlError::NotAllowed
                }
                _ => ControlError::kernel(what(verb, device), error),
            })
    }

    /// A command that names the device's node, which decides who may give it.
    fn run_by_node(
        &mut self,
        (operation, verb): (u32, &str),
        device: u32,
        data: u64,
        buffer: Option<&mut [u8]>,
    ) -> Result<()> {
        let path = node(device);
        let mut bytes = path.clone().into_bytes();
        if let Some(buffer) = &buffer {
            bytes.extend_from_slice(buffer);
        }
        let path_len = u16::try_from(path.len()).unwrap_or(0);
        self.ring
            .run(operation, device, data, Some(&mut bytes), path_len)
            .map_err(|error| ControlError::kernel(what(verb, device), error))?;
        if let Some(buffer) = buffer {
            buffer.copy_from_slice(&bytes[path.len()..]);
        }
        Ok(())
    }

    /// A command for a device, which may be an ordinary user's.
    fn run_for(
        &mut self,
        order: (u32, &str),
        device: u32,
        data: u64,
        buffer: Option<&mut [u8]>,
    ) -> Result<()> {
        let unprivileged = Features::UNPRIVILEGED_DEV;
        let by_node =
            !self.is_privileged || Features(self.info(device)?.features).contains(unprivileged);
        if by_node {
            self.run_by_node(order, device, data, buffer)
        } else {
            self.run(order, device, data, buffer)
        }
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// When the kernel refuses; a driver that does not know the question has no features that
    /// matter here.
    pub fn features(&mut self) -> Result<Features> {
        let mut bytes = [0; FEATURES_BYTES];
        let question = (
            command::GET_FEATURES,
            "read the features of the ublk driver",
        );
        match self.run(question, ANY_DEVICE, 0, Some(&mut bytes)) {
            Ok(()) => Ok(Features(u64::from_le_bytes(bytes))),
            Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                Ok(Features(0))
            }
            Err(error) => Err(error),
        }
    }

    /// How a device is going to be used here, `without` some of the driver's features.
    ///
    /// # Errors
    /// As [`Control::features`], and when the driver is too old.
    pub fn plan(&mut self, without: Features) -> Result<Plan> {
        let driver = Features(self.features()?.0 & !without.0);
        Ok(Plan::new(driver, self.is_privileged)?)
    }

    /// A device's description.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn info(&mut self, number: u32) -> Result<DeviceInfo> {
        let mut bytes = [0; INFO_BYTES];
        let question = (command::GET_DEV_INFO2, "describe");
        self.run_by_node(question, number, 0, Some(&mut bytes))?;
        Ok(DeviceInfo::of_bytes(&bytes))
    }

    /// Size of a device's volume in bytes.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn capacity_bytes(&mut self, number: u32) -> Result<u64> {
        let mut bytes = Params::blank();
        let question = (command::GET_PARAMS, "read the parameters of");
        self.run_for(question, number, 0, Some(&mut bytes))?;
        Ok(Params::capacity_of(&bytes))
    }

    /// All devices that this user may ask about, in rising order.
    ///
    /// # Errors
    /// When `/dev` cannot be read. A device that goes meanwhile is left out.
    pub fn list(&mut self) -> Result<Vec<DeviceInfo>> {
        let failed = |error| ControlError::kernel("look for devices in /dev", error);
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir("/dev").map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("ublkc"))
                .and_then(|number| number.parse::<u32>().ok());
            if let Some(number) = number.filter(|_| numbers.len() < DEVICES_MAX) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let mut devices = Vec::with_capacity(numbers.len());
        for number in numbers {
            match self.info(number) {
                Ok(info) => devices.push(info),
                // Gone, or somebody else's business.
                Err(error)
                    if matches!(
                        error.errno(),
                        Some(libc::ENODEV | libc::ENOENT | libc::EPERM | libc::EACCES)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(devices)
    }

    /// Makes a device; gives what became of it, its number among them.
    ///
    /// # Errors
    /// When the number is taken (`EEXIST`), or the kernel refuses.
    pub fn add(&mut self, wanted: DeviceInfo) -> Result<DeviceInfo> {
        let mut bytes = wanted.to_bytes();
        let order = (command::ADD_DEV, "add");
        self.run(order, wanted.number, 0, Some(&mut bytes))?;
        Ok(DeviceInfo::of_bytes(&bytes))
    }

    /// Tells the kernel what the block device shall say of itself. Before the start.
    ///
    /// # Errors
    /// When the kernel takes a value for wrong.
    pub fn set_params(&mut self, number: u32, params: Params) -> Result<()> {
        let mut bytes = params.to_bytes();
        let order = (command::SET_PARAMS, "set the parameters of");
        self.run_for(order, number, 0, Some(&mut bytes))
    }

    /// Makes the block device appear. Waits until every slot has been fetched; reads of the kernel
    /// (partitions) come before it returns.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(&mut self, number: u32) -> Result<()> {
        let pid = u64::from(std::process::id());
        self.run_for((command::START_DEV, "start"), number, pid, None)
    }

    /// Makes the block device go. Requests in flight are waited for, so somebody must serve them.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn stop(&mut self, number: u32) -> Result<()> {
        self.run_for((command::STOP_DEV, "stop"), number, 0, None)
    }

    /// Removes a device and waits until nobody has it open.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn delete(&mut self, number: u32) -> Result<()> {
        self.run_for((command::DEL_DEV, "delete"), number, 0, None)
    }

    /// Begins to take over a device whose server has died.
    ///
    /// # Errors
    /// `EBUSY` while the dead server's traces are there.
    pub fn start_recovery(&mut self, number: u32) -> Result<()> {
        let order = (command::START_USER_RECOVERY, "begin the recovery of");
        self.run_for(order, number, 0, None)
    }

    /// Lets requests go on. Waits until every slot has been fetched.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn end_recovery(&mut self, number: u32) -> Result<()> {
        let pid = u64::from(std::process::id());
        let order = (command::END_USER_RECOVERY, "end the recovery of");
        self.run_for(order, number, pid, None)
    }
}

fn what(verb: &str, device: u32) -> String {
    match device {
        abi::ANY_DEVICE if verb == "add" => "add a ublk device".to_owned(),
        abi::ANY_DEVICE => verb.to_owned(),
        number => format!("{verb} ublk device {number}"),
    }
}

/// True when a device can be taken over by a new server.
pub(crate) fn is_recoverable(state: State) -> bool {
    matches!(state, State::Quiesced | State::FailIo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_driver_is_told_with_what_to_do() {
        let error = Control::open_at("/dev/ublk-control-that-is-not-there").unwrap_err();
        assert!(matches!(error, ControlError::NoDriver) && error.is_final());
        let text = error.to_string();
        assert!(
            text.contains("modprobe ublk_drv") && text.contains("6.5"),
            "{text}"
        );
    }

    #[test]
    fn right_to_everything_is_read_from_the_process_status() {
        assert!(is_privileged("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(is_privileged("CapEff:\t0000000000200000\n"));
        for status in [
            "CapEff:\t0000000000000000\n",
            "CapEff:\t1fffff\n",
            "CapEff:\tx\n",
            "",
        ] {
            assert!(!is_privileged(status), "{status:?}");
        }
    }

    #[test]
    fn failures_name_the_command_and_the_device() {
        assert_eq!(what("stop", 3), "stop ublk device 3");
        assert_eq!(what("add", ANY_DEVICE), "add a ublk device");
        let busy = ControlError::kernel(what("stop", 3), io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(busy.errno(), Some(libc::EBUSY));
        assert!(!busy.is_final());
        assert!(busy.to_string().starts_with("stop ublk device 3: "));
    }
}
