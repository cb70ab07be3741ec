//! Limits of the NBD frontend, each with its unit and the rule at the limit.

use core::time::Duration;
use trilith_block::limits::{HEADER_BYTES_MAX, TRANSFER_BYTES_MAX};

/// Connections at one time. One more is closed at once.
pub const CONNECTIONS_MAX: usize = 64;
/// Connection slots, those included whose connection is gone while the engine still works on its
/// requests. When none is free a new connection is closed at once.
pub const CONNECTION_SLOTS_MAX: usize = 128;
/// Requests in flight on one connection. At the limit the connection is not read.
pub const REQUESTS_MAX: usize = 256;
/// Payload bytes (of writes on their way in and of reads on their way out) that one connection may
/// have in flight. At the limit the connection is not read.
pub const PAYLOAD_BYTES_PER_CONNECTION_MAX: u64 = 32 * 1024 * 1024;
/// Payload bytes that all connections together may have in flight beyond their credits. At the
/// limit connections wait in the order in which they came to it.
pub const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Payload bytes that every connection may have in flight whatever the others do, so that stalled
/// or greedy clients cannot stop the rest. One part of a write.
pub const PAYLOAD_CREDIT_BYTES: u64 = TRANSFER_BYTES_MAX as u64;
/// Longest read or write of a client in bytes; advertised. A longer one gets `NBD_EINVAL`.
pub const REQUEST_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Parts that one read or write is split into: the first and the last may be short.
pub const PARTS_MAX: u64 = REQUEST_BYTES_MAX / TRANSFER_BYTES_MAX as u64 + 1;
/// Longest payload in bytes that is read and thrown away after an illegal request. Compact headers
/// cannot say more; extended headers that do close the connection.
pub const DISCARD_BYTES_MAX: u64 = u32::MAX as u64;
/// Longest option data in bytes that is kept. Longer data is thrown away as it arrives and the
/// option refused.
pub const OPTION_BYTES_MAX: u32 = 8192;
/// Options of one connection. One more closes the connection.
pub const OPTIONS_MAX: u32 = 64;
/// Time from accept to transmission. A connection that takes longer is closed.
pub const NEGOTIATION_SPAN_MAX: Duration = Duration::from_secs(30);
/// Time from the end of service to the close of connections that still have requests in flight.
pub const SHUTDOWN_SPAN_MAX: Duration = Duration::from_secs(5);
/// Longest string that the protocol allows, in bytes.
pub const STRING_BYTES_MAX: u32 = 4096;
/// Longest name of an export, in bytes: what the specification recommends.
pub const EXPORT_NAME_BYTES_MAX: usize = 256;
/// Longest description of an export, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 1024;
/// Queries in one meta context option. More are refused with `NBD_REP_ERR_TOO_BIG`.
pub const META_QUERIES_MAX: u32 = 64;
/// Descriptors in one block status chunk; the answer covers less when there would be more.
pub const STATUS_DESCRIPTORS_MAX: usize = 4096;
/// How long a connection waits for the arena before it asks again, if nothing else happens: memory
/// can be given back by somebody else, of which this frontend hears nothing.
pub const ARENA_RETRY_SPAN: Duration = Duration::from_millis(2);

const _: () = assert!(OPTION_BYTES_MAX as usize <= HEADER_BYTES_MAX);
const _: () = assert!(STRING_BYTES_MAX < OPTION_BYTES_MAX);
const _: () = assert!(EXPORT_NAME_BYTES_MAX <= STRING_BYTES_MAX as usize);
const _: () = assert!(CONNECTIONS_MAX <= CONNECTION_SLOTS_MAX);
const _: () = assert!(CONNECTION_SLOTS_MAX <= 1 << 16);
const _: () = assert!(REQUESTS_MAX <= 1 << 16);
const _: () = assert!(PARTS_MAX <= 1 << 8);
const _: () = assert!(REQUEST_BYTES_MAX <= PAYLOAD_BYTES_PER_CONNECTION_MAX);
const _: () = assert!(PAYLOAD_BYTES_PER_CONNECTION_MAX < PAYLOAD_BYTES_MAX);
const _: () = assert!(PAYLOAD_CREDIT_BYTES >= TRANSFER_BYTES_MAX as u64);
