//! The driver's structures, byte by byte.

use crate::abi::{self, DeviceInfo, State, command};
use crate::params::Params;
use trilith_block::Capabilities;

fn volume() -> Capabilities {
    Capabilities {
        capacity_bytes: 10 << 30,
        block_bytes: 4096,
        transfer_bytes_max: 1 << 20,
        optimal_bytes: 1 << 20,
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn commands_have_the_numbers_that_the_kernel_headers_give() {
    // _IOC(direction, 'u', number, 32), direction 2 = read, 3 = read and write.
    for (name, number, direction, nr) in [
        ("GET_DEV_INFO2", command::GET_DEV_INFO2, 2u32, 0x12),
        ("ADD_DEV", command::ADD_DEV, 3, 0x04),
        ("DEL_DEV", command::DEL_DEV, 3, 0x05),
        ("START_DEV", command::START_DEV, 3, 0x06),
        ("STOP_DEV", command::STOP_DEV, 3, 0x07),
        ("SET_PARAMS", command::SET_PARAMS, 3, 0x08),
        ("GET_PARAMS", command::GET_PARAMS, 2, 0x09),
        ("START_USER_RECOVERY", command::START_USER_RECOVERY, 3, 0x10),
        ("END_USER_RECOVERY", command::END_USER_RECOVERY, 3, 0x11),
        ("GET_FEATURES", command::GET_FEATURES, 2, 0x13),
    ] {
        let expected = direction << 30 | 32 << 16 | u32::from(b'u') << 8 | nr;
        assert_eq!(number, expected, "{name}");
    }
}

#[test]
fn control_command_is_laid_out_as_the_driver_reads_it() {
    let bytes = abi::control(7, 0x1122_3344_5566_7788, (64, 11), 99);
    assert_eq!(le32(&bytes, 0), 7);
    assert_eq!(bytes[4..6], [0xff, 0xff], "no queue");
    assert_eq!(bytes[6..8], [64, 0]);
    assert_eq!(
        bytes[8..16],
        [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
    );
    assert_eq!(le32(&bytes, 16), 99);
    assert_eq!(bytes[20..26], [0, 0, 0, 0, 11, 0], "a path of 11 bytes");
    assert!(bytes[26..].iter().all(|byte| *byte == 0));
}

#[test]
fn device_description_survives_the_way_through_bytes() {
    let info = DeviceInfo {
        number: 3,
        queues: 2,
        depth: 128,
        state: State::Dead,
        request_bytes_max: 1 << 20,
        server: -1,
        features: 0xd8,
        own: 0x5452_0102_0304_0506,
        owner: (0, 0),
    };
    let mut bytes = info.to_bytes();
    assert_eq!(DeviceInfo::of_bytes(&bytes), info);
    assert_eq!(bytes[0..4], [2, 0, 128, 0]);
    assert_eq!(le32(&bytes, 8), 1 << 20);
    assert_eq!(le32(&bytes, 12), 3);
    assert_eq!(le32(&bytes, 16), u32::MAX);
    assert_eq!(le32(&bytes, 24), 0xd8);
    assert_eq!(bytes[32..40], [6, 5, 4, 3, 2, 1, 0x52, 0x54]);
    bytes[40..48].copy_from_slice(&[0xe8, 3, 0, 0, 100, 0, 0, 0]);
    assert_eq!(DeviceInfo::of_bytes(&bytes).owner, (1000, 100));
    for (number, state) in [
        (1, State::Live),
        (2, State::Quiesced),
        (3, State::FailIo),
        (9, State::Other(9)),
    ] {
        bytes[4] = number;
        assert_eq!(DeviceInfo::of_bytes(&bytes).state, state);
    }
}

#[test]
fn block_device_says_what_the_volume_is() {
    let params = Params::new(&volume(), false);
    let bytes = params.to_bytes();
    assert_eq!(le32(&bytes, 0), 60, "length");
    assert_eq!(le32(&bytes, 4), 0b11, "basic and discard");
    assert_eq!(le32(&bytes, 8), 0b1100, "volatile cache and FUA");
    assert_eq!(
        bytes[12..16],
        [9, 12, 20, 12],
        "512 logical, 4096 physical, 1 MiB optimal, 4096 smallest"
    );
    assert_eq!(le32(&bytes, 16), 2048, "sectors in a request");
    assert_eq!(le32(&bytes, 24), 10 << 21, "sectors of the device");
    assert_eq!(le32(&bytes, 44), 65536, "discard granularity");
    assert_eq!(le32(&bytes, 48), 1 << 21, "sectors in a discard");
    assert_eq!(le32(&bytes, 52), 1 << 21, "sectors in a write of zeroes");
    assert_eq!(bytes[56..60], [1, 0, 0, 0], "one segment");
    assert_eq!(Params::capacity_of(&bytes), 10 << 30);
}

#[test]
fn read_only_device_discards_nothing() {
    let bytes = Params::new(&volume(), true).to_bytes();
    assert_eq!(le32(&bytes, 4), 0b1, "basic alone");
    assert_eq!(le32(&bytes, 8), 0b1101);
    assert!(bytes[40..].iter().all(|byte| *byte == 0));
}

#[test]
fn transfer_is_never_longer_than_a_buffer_of_the_arena() {
    let wide = Capabilities {
        transfer_bytes_max: 32 << 20,
        ..volume()
    };
    assert_eq!(Params::new(&wide, false).request_bytes_max, 1 << 20);
    let narrow = Capabilities {
        transfer_bytes_max: 64 << 10,
        ..volume()
    };
    assert_eq!(Params::new(&narrow, false).request_bytes_max, 64 << 10);
}
