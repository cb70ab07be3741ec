//! The driver's numbers and structures, as bytes: `include/uapi/linux/ublk_cmd.h` in our words.
//! Fields are in the host's order, which is little-endian wherever this crate compiles.

/// Commands to `/dev/ublk-control`, encoded as ioctls on a structure of 32 bytes.
pub(crate) mod command {
    /// `_IOR('u', nr, struct ublksrv_ctrl_cmd)`.
    const fn read(nr: u32) -> u32 {
        0x8020_7500 | nr
    }

    /// `_IOWR('u', nr, struct ublksrv_ctrl_cmd)`.
    const fn write(nr: u32) -> u32 {
        0xc020_7500 | nr
    }

    /// Make a device: its character node appears.
    pub(crate) const ADD_DEV: u32 = write(0x04);
    /// Remove a device and wait until its number is free.
    pub(crate) const DEL_DEV: u32 = write(0x05);
    /// Make the block device appear; waits until each slot has been fetched.
    pub(crate) const START_DEV: u32 = write(0x06);
    /// Make the block device go.
    pub(crate) const STOP_DEV: u32 = write(0x07);
    /// Set sizes, cache and limits, before the start.
    pub(crate) const SET_PARAMS: u32 = write(0x08);
    /// Read them.
    pub(crate) const GET_PARAMS: u32 = read(0x09);
    /// Prepare a device without a server for the next one.
    pub(crate) const START_USER_RECOVERY: u32 = write(0x10);
    /// Let its requests go on; waits until each slot has been fetched.
    pub(crate) const END_USER_RECOVERY: u32 = write(0x11);
    /// Describe a device, with the path of its node before the answer.
    pub(crate) const GET_DEV_INFO2: u32 = read(0x12);
    /// Which features the driver has.
    pub(crate) const GET_FEATURES: u32 = read(0x13);
}

/// Operations of a request, in the low byte of `op_flags`.
pub(crate) mod operation {
    pub(crate) const READ: u32 = 0;
    pub(crate) const WRITE: u32 = 1;
    pub(crate) const FLUSH: u32 = 2;
    pub(crate) const DISCARD: u32 = 3;
    pub(crate) const WRITE_ZEROES: u32 = 5;
    /// Which bits of `op_flags` hold it.
    pub(crate) const MASK: u32 = 0xff;
}

/// Flags of a request, above its operation.
pub(crate) mod flag {
    /// Durable before it completes.
    pub(crate) const FUA: u32 = 1 << 13;
    /// Zeroes: keep the space.
    pub(crate) const NO_UNMAP: u32 = 1 << 15;
}

/// A command's target when it has no device number yet.
pub(crate) const ANY_DEVICE: u32 = u32::MAX;
/// A command that is not about a queue.
const NO_QUEUE: u16 = u16::MAX;
/// Bytes that a command carries in a long ring entry.
pub(crate) const COMMAND_BYTES: usize = 80;
/// Bytes of a `struct ublksrv_ctrl_dev_info`.
pub(crate) const INFO_BYTES: usize = 64;
/// Bytes of the features.
pub(crate) const FEATURES_BYTES: usize = 8;

#[cfg(target_endian = "big")]
compile_error!("the driver's structures are written in little-endian order here");

/// `struct ublksrv_ctrl_cmd`, with room behind it. `address` and `len` name the command's buffer, which
/// begins with a path of `path_len` bytes.
pub(crate) fn control(
    device: u32,
    address: u64,
    (len, path_len): (u16, u16),
    data: u64,
) -> [u8; COMMAND_BYTES] {
    let mut bytes = [0; COMMAND_BYTES];
    bytes[0..4].copy_from_slice(&device.to_le_bytes());
    bytes[4..6].copy_from_slice(&NO_QUEUE.to_le_bytes());
    bytes[6..8].copy_from_slice(&len.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..24].copy_from_slice(&data.to_le_bytes());
    bytes[24..26].copy_from_slice(&path_len.to_le_bytes());
    bytes
}

/// What a device is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// It has no block device: not started, stopped, or its server died without recovery.
    Dead,
    /// It is served.
    Live,
    /// Its server died: requests wait for the next one.
    Quiesced,
    /// Its server died: requests fail until the next one comes.
    FailIo,
    /// A state of a newer driver.
    Other(u16),
}

impl State {
    fn of(number: u16) -> State {
        match number {
            0 => State::Dead,
            1 => State::Live,
            2 => State::Quiesced,
            3 => State::FailIo,
            other => State::Other(other),
        }
    }

    /// A word for people.
    pub fn name(self) -> &'static str {
        match self {
            State::Dead => "dead",
            State::Live => "live",
            State::Quiesced => "quiesced",
            State::FailIo => "failing",
            State::Other(_) => "unknown",
        }
    }
}

/// A device as the driver describes it (`struct ublksrv_ctrl_dev_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Its number: N of `/dev/ublkbN`. `u32::MAX` in an addition: any.
    pub number: u32,
    /// Queues.
    pub queues: u16,
    /// Requests in flight in each queue.
    pub depth: u16,
    /// What it is doing. Not read in an addition.
    pub state: State,
    /// Longest read or write, in bytes.
    pub request_bytes_max: u32,
    /// Process that serves it, or served it last; -1: none.
    pub server: i32,
    /// Features it was added with.
    pub features: u64,
    /// A number of the server's own, which the driver keeps.
    pub own: u64,
    /// User and group that have added it. Not read in an addition.
    pub owner: (u32, u32),
}

fn u16_at(bytes: &[u8; INFO_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; INFO_BYTES], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8; INFO_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl DeviceInfo {
    /// As the driver reads it.
    pub(crate) fn to_bytes(self) -> [u8; INFO_BYTES] {
        let mut bytes = [0; INFO_BYTES];
        bytes[0..2].copy_from_slice(&self.queues.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.depth.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.request_bytes_max.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.server.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.features.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.own.to_le_bytes());
        bytes
    }

    /// As the driver writes it.
    pub(crate) fn of_bytes(bytes: &[u8; INFO_BYTES]) -> DeviceInfo {
        DeviceInfo {
            queues: u16_at(bytes, 0),
            depth: u16_at(bytes, 2),
            state: State::of(u16_at(bytes, 4)),
            request_bytes_max: u32_at(bytes, 8),
            number: u32_at(bytes, 12),
            server: u32_at(bytes, 16).cast_signed(),
            features: u64_at(bytes, 24),
            own: u64_at(bytes, 32),
            owner: (u32_at(bytes, 40), u32_at(bytes, 44)),
        }
    }
}
