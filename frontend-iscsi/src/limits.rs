//! Limits of the iSCSI frontend, each with its unit and the rule at the limit.

use core::time::Duration;
use trilith_block::limits::{HEADER_BYTES_MAX, TRANSFER_BYTES_MAX};

/// Connections at one time, those that log in included. One more is closed at once.
pub const CONNECTIONS_MAX: usize = 1100;
/// Connections that have not finished their login, at one time. One more is closed at once, so
/// that peers without a secret cannot keep others out for longer than a login may take.
pub const LOGINS_MAX: usize = 1024;
/// Sessions in full feature phase at one time. A login beyond it fails with "out of resources".
pub const SESSIONS_MAX: usize = 64;
/// Connection slots, those included whose connection is gone while the engine still works on its
/// requests. When none is free a new connection is closed at once.
pub const CONNECTION_SLOTS_MAX: usize = 1280;
/// Commands of a session in flight: the size of its CmdSN window. Commands beyond it are outside
/// the window and ignored, as RFC 7143 says.
pub const COMMANDS_MAX: u32 = 128;
/// Immediate SCSI commands of a session in flight, beyond the window. One more is rejected.
pub const IMMEDIATE_COMMANDS_MAX: usize = 8;
/// Task management functions of a session that wait for tasks to end. One more is rejected.
pub const TASK_MANAGEMENT_MAX: usize = 8;
/// Parts of one task in flight.
pub const PARTS_MAX: usize = 4;
/// Bytes of one part of a task.
pub const PART_BYTES_MAX: u32 = TRANSFER_BYTES_MAX;
/// R2Ts of one task outstanding: what we negotiate at most for MaxOutstandingR2T.
pub const R2TS_MAX: u32 = 4;
/// Largest MaxBurstLength that we negotiate, in bytes.
pub const BURST_BYTES_MAX: u32 = 1024 * 1024;
/// Largest FirstBurstLength that we negotiate, in bytes: fits the first part of a task.
pub const FIRST_BURST_BYTES_MAX: u32 = 256 * 1024;
/// Our MaxRecvDataSegmentLength, in bytes. A PDU with more closes the connection.
pub const SEGMENT_BYTES_MAX: u32 = 1024 * 1024;
/// MaxRecvDataSegmentLength of a peer that has declared none, in bytes (RFC 7143 13.12).
pub const SEGMENT_BYTES_DEFAULT: u32 = 8192;
/// Data of one login or text request, in bytes. A longer login request closes the connection, a
/// longer text request is rejected. In full feature phase padding and digest must fit too.
pub const TEXT_SEGMENT_BYTES_MAX: u32 = 8192;
/// Text of one negotiation step that is spread over requests by the C bit, in bytes. More fails
/// the login, or resets the text negotiation.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Keys in one step of a negotiation. More fail the login.
pub const KEYS_MAX: usize = 64;
/// Login requests of one login. One more closes the connection.
pub const LOGIN_REQUESTS_MAX: u32 = 32;
/// Time from accept to full feature phase. A connection that takes longer is closed.
pub const LOGIN_SPAN_MAX: Duration = Duration::from_secs(15);
/// Longest iSCSI name, in bytes (RFC 7143 4.2.7.1).
pub const NAME_BYTES_MAX: usize = 223;
/// Longest CHAP challenge or response that is decoded, in bytes (RFC 7143 13.5 allows 1024).
pub const CHAP_BYTES_MAX: usize = 1024;
/// Longest CHAP secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 256;
/// Shortest CHAP secret, in bytes: 96 bits (RFC 7143 9.2.1).
pub const SECRET_BYTES_MIN: usize = 12;
/// Initiator names in the allow-list, CHAP users and portals. More fail the configuration.
pub const LIST_ENTRIES_MAX: usize = 256;
/// Longest CDB that is understood, in bytes. Longer ones (AHS) are unknown commands.
pub const CDB_BYTES_MAX: usize = 16;
/// Longest data of a SCSI command, in bytes; told in VPD page B0h. It is moved in parts, so that
/// it costs no memory: 65536 blocks of 4096 bytes.
pub const COMMAND_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Longest parameter list of a SCSI command, in bytes. A longer one is refused.
pub const PARAMETER_BYTES_MAX: u32 = 64 * 1024;
/// Descriptors of one UNMAP; told in VPD page B0h.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;
/// Blocks of one COMPARE AND WRITE; told in VPD page B0h.
pub const COMPARE_BLOCKS_MAX: u32 = 128;
/// Target descriptors of one EXTENDED COPY.
pub const COPY_TARGETS_MAX: usize = 8;
/// Segment descriptors of one EXTENDED COPY.
pub const COPY_SEGMENTS_MAX: usize = 16;
/// Bytes of the descriptors of one EXTENDED COPY.
pub const COPY_DESCRIPTOR_BYTES_MAX: usize = 1024;
/// Bytes that one segment of an EXTENDED COPY may copy: 65535 blocks of 4096 bytes.
pub const COPY_SEGMENT_BYTES_MAX: u64 = 65535 * 4096;
/// Persistent reservation keys registered. One more fails with INSUFFICIENT REGISTRATION RESOURCES.
pub const REGISTRATIONS_MAX: usize = 128;
/// Unit attentions kept for one session. When there are more, one that says all is kept.
pub const UNIT_ATTENTIONS_MAX: usize = 8;
/// Block status records looked at for one GET LBA STATUS.
pub const STATUS_DESCRIPTORS_MAX: usize = 256;
/// Payload bytes that one session may have in flight. At the limit its tasks wait.
pub const PAYLOAD_BYTES_PER_SESSION_MAX: u64 = 32 * 1024 * 1024;
/// Payload bytes that all sessions together may have in flight, one part of every session beyond
/// it. At the limit tasks wait in the order in which they came to it.
pub const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long a task waits for the arena before it asks again, if nothing else happens.
pub const ARENA_RETRY_SPAN: Duration = Duration::from_millis(2);
/// Time without a byte from an initiator after which it is asked for a sign of life (NOP-In).
pub const PING_SPAN: Duration = Duration::from_secs(30);
/// Time that the answer to it may take. Then the connection is closed. Single-threaded initiators read nothing
/// while they sleep, and a minute is a common sleep (libiscsi's tests): this is a minute and a half after
/// the last byte, so that the end of such a sleep does not race with the close.
pub const PING_ANSWER_SPAN_MAX: Duration = Duration::from_secs(60);
/// Time from the end of service to the close of connections that still have tasks.
pub const SHUTDOWN_SPAN_MAX: Duration = Duration::from_secs(5);
/// SANITIZE: bytes overwritten per second at most, so that it leaves room for other volumes.
pub const SANITIZE_BYTES_PER_SECOND_MAX: u64 = 32 * 1024 * 1024;

const _: () = assert!(TEXT_SEGMENT_BYTES_MAX as usize <= HEADER_BYTES_MAX);
const _: () = assert!(FIRST_BURST_BYTES_MAX <= PART_BYTES_MAX);
const _: () = assert!(FIRST_BURST_BYTES_MAX <= BURST_BYTES_MAX);
const _: () = assert!(BURST_BYTES_MAX <= SEGMENT_BYTES_MAX);
const _: () = assert!(PARAMETER_BYTES_MAX <= FIRST_BURST_BYTES_MAX);
const _: () = assert!(COMPARE_BLOCKS_MAX * 2 * 4096 <= PART_BYTES_MAX);
const _: () = assert!(COMPARE_BLOCKS_MAX <= 255);
const _: () = assert!(PARTS_MAX <= 16);
const _: () = assert!(R2TS_MAX as usize <= PARTS_MAX);
const _: () = assert!(SESSIONS_MAX * (COMMANDS_MAX as usize + IMMEDIATE_COMMANDS_MAX) < 1 << 20);
const _: () = assert!(LOGINS_MAX + SESSIONS_MAX <= CONNECTIONS_MAX);
const _: () = assert!(CONNECTIONS_MAX <= CONNECTION_SLOTS_MAX);
