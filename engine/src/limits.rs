//! Named maxima and default times of the engine. Sizes and times that tests and the simulator
//! change are fields of [`crate::config::Sizes`] and [`crate::config::Timing`]; these are their
//! defaults.

use core::time::Duration;

/// Requests of clients taken and not completed. Beyond: `submit` gives the request back.
pub const REQUESTS_MAX: usize = 1024;
/// Slots of a replica's window.
pub const WINDOW_SLOTS: u64 = 8192;
/// Slots that the engine leaves unused. Beyond the rest: admission waits for tidx.
pub const WINDOW_RESERVE: u64 = 64;
/// Parts of one large discard or zeroes request in flight at once (M20). Beyond: the rest waits.
pub const EXPAND_PARTS_MAX: u32 = 16;
/// Flush entries not yet durable at a majority. Beyond: further flush requests share the next one.
pub const FLUSHES_MAX: usize = 4;
/// Committed entries that a member may lack before it is demoted (M9).
pub const LAG_ENTRIES_MAX: u64 = 4096;
/// Committed payload bytes that a member may lack before it is demoted (M9).
pub const LAG_BYTES_MAX: u64 = 32 << 20;
/// A member that lacks less than the two limits above is demoted when it has lacked a committed
/// entry this long.
pub const LAG_AGE_MAX: Duration = Duration::from_secs(2);
/// The two limits above count only once the oldest entry lacked is this old (M9).
pub const LAG_AGE_MIN: Duration = Duration::from_millis(250);
/// Time a session may be lost before its member is demoted.
pub const DEMOTE_AFTER: Duration = Duration::from_secs(3);
/// Lease that a replica grants from each APPEND, FLUSH or HEARTBEAT (L).
pub const LEASE: Duration = Duration::from_secs(3);
/// Taken off a lease besides 2 % for the clocks' rates.
pub const LEASE_MARGIN: Duration = Duration::from_millis(5);
/// Time without a frame to a member after which a heartbeat goes to it.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// The same when no client has asked for anything for this long: an idle volume costs half, and a
/// lease is still granted anew three times in its span.
pub const HEARTBEAT_IDLE: Duration = Duration::from_secs(1);
/// Time without any frame from a member, with something unanswered, after which its session is
/// closed.
pub const SESSION_SILENCE_MAX: Duration = Duration::from_secs(2);
/// Time a dial and a handshake may take together.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(2);
/// Shortest time between two dials of a member; doubles up to the longest.
pub const REDIAL_MIN: Duration = Duration::from_millis(100);
/// Longest time between two dials of a member.
pub const REDIAL_MAX: Duration = Duration::from_secs(2);
/// Time to wait for the rest of the voters once a majority has promised.
pub const PROMISE_WAIT: Duration = Duration::from_millis(300);
/// Time a round of PREVOTE or VOTE may take before it is repeated.
pub const CAMPAIGN_ROUND_MAX: Duration = Duration::from_secs(2);
/// Shortest time between two campaigns; doubles up to the longest.
pub const CAMPAIGN_RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest time between two campaigns.
pub const CAMPAIGN_RETRY_MAX: Duration = Duration::from_secs(1);
/// Longest time after meeting a higher term before this engine campaigns above it (R10).
pub const RECAMPAIGN_MAX: Duration = Duration::from_secs(1);
/// Time that requests are held while there is no majority, before they fail.
pub const QUORUM_WAIT: Duration = Duration::from_secs(30);
/// Time that a lossy recovery waits for more members.
pub const LOSSY_WAIT: Duration = Duration::from_secs(60);
/// Time taken off an exclusivity grant (RO-M).
pub const GRANT_MARGIN: Duration = Duration::from_millis(100);
/// Time that a clean stop may take before the engine stops all the same, unsealed.
pub const STOP_WAIT: Duration = Duration::from_secs(10);
/// Shortest time before a read is also sent to a second replica.
pub const HEDGE_MIN: Duration = Duration::from_millis(2);
/// Longest time before a read is also sent to a second replica.
pub const HEDGE_MAX: Duration = Duration::from_millis(500);
/// Age of a copy's chunk lock at which it is given up (M4).
pub const COPY_LOCK_MAX: Duration = Duration::from_millis(50);
/// Time between two looks at the ages of all requests.
pub const SWEEP: Duration = Duration::from_millis(250);
/// Bytes of the volume that a scrub compares per second at most.
pub const SCRUB_BYTES_PER_SECOND: u64 = 64 << 20;
/// Slow operations that are kept with their stages. A slower one takes the place of the fastest.
pub const SLOWEST_MAX: usize = 32;
/// Records of one block-status answer: what is not covered is asked for again.
pub const EXTENTS_RECORDS_MAX: usize = 256;

const _: () = assert!(WINDOW_RESERVE < WINDOW_SLOTS);
const _: () = assert!(LAG_ENTRIES_MAX < WINDOW_SLOTS - WINDOW_RESERVE);
/// Chunks being read or repaired at once in a recovery.
pub const RECOVERY_CHUNKS_MAX: usize = 32;
/// Blocks for which a recovery takes another source because theirs cannot be read (C26). With more
/// of them the members that are to be repaired there are left out, or the recovery fails.
pub const SOURCE_CHANGES_MAX: usize = 4096;
/// A recovery without any answer for this long starts again with a new vote.
pub const RECOVERY_STALL: Duration = Duration::from_secs(10);
/// A member whose differing chunks are at most this many bytes is repaired before the term starts.
pub const FIRST_ISS_BYTES: u64 = 64 << 20;
/// A volume without a majority that counts, although a majority is connected and nothing heals it,
/// campaigns again after this time.
pub const STUCK: Duration = Duration::from_secs(1);
/// Parts waiting in the gate above which blocks that some replica cannot read are not rewritten
/// now; a later read of them tries again.
pub const REWRITES_PARTS_MAX: usize = 64;
/// Time after which a read that no replica could take is tried again.
pub const READ_RETRY: Duration = Duration::from_millis(50);
/// Joins of one member after healing in place, in one term. When they all fail, a new term merges
/// what there is.
pub const HEALS_MAX: u32 = 3;
/// Time that a member rests after a demotion for lag or a failing device; doubles.
pub const REST_MIN: Duration = Duration::from_secs(1);
/// Longest such time. A member that was in sync this long starts from the shortest again.
pub const REST_MAX: Duration = Duration::from_secs(60);
/// Lists of live runs of blocks, by extent modulo this: the runs of up to so many busy extents are
/// looked up apart. With more of them lists are shared; nothing is refused.
pub const SPAN_BUCKETS: usize = 256;
