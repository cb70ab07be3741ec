//! What an engine is started with. Validated once by [`EngineConfig::validate`].

use crate::limits;
use crate::scrub::ScrubConfig;
use core::time::Duration;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{MemberSet, Uuid};
use trilith_wire::auth::Secret;

/// Times. The defaults are in [`crate::limits`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// L: lease that the replicas grant. Must not exceed what they are configured with.
    pub lease: Duration,
    /// Use leases at all; without, each read asks a majority first (guests that can be frozen).
    pub lease_enabled: bool,
    /// Silence after which a heartbeat is sent.
    pub heartbeat: Duration,
    /// The same once clients have asked for nothing for as long.
    pub heartbeat_idle: Duration,
    /// Silence of a member with something unanswered after which its session is closed.
    pub session_silence_max: Duration,
    /// Dial and handshake together.
    pub handshake_max: Duration,
    /// Shortest time between dials.
    pub redial_min: Duration,
    /// Longest time between dials.
    pub redial_max: Duration,
    /// Wait for late promises after a majority.
    pub promise_wait: Duration,
    /// One round of PREVOTE or VOTE.
    pub campaign_round_max: Duration,
    /// Shortest time between campaigns.
    pub campaign_retry_min: Duration,
    /// Longest time between campaigns.
    pub campaign_retry_max: Duration,
    /// R10: longest time before campaigning above a higher term met.
    pub recampaign_max: Duration,
    /// Requests are held this long without a majority.
    pub quorum_wait: Duration,
    /// A lossy recovery waits this long for more members; `None`: for ever.
    pub lossy_wait: Option<Duration>,
    /// A lost member is demoted after this time.
    pub demote_after: Duration,
    /// Lag by age, see [`limits::LAG_AGE_MAX`].
    pub lag_age_max: Duration,
    /// See [`limits::LAG_AGE_MIN`].
    pub lag_age_min: Duration,
    /// Taken off an exclusivity grant.
    pub grant_margin: Duration,
    /// A clean stop takes at most this long.
    pub stop_wait: Duration,
    /// Shortest hedge delay.
    pub hedge_min: Duration,
    /// Longest hedge delay, and the one used before there are measurements.
    pub hedge_max: Duration,
    /// M4: a copy's lock is given up at this age.
    pub copy_lock_max: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            lease: limits::LEASE,
            lease_enabled: true,
            heartbeat: limits::HEARTBEAT,
            heartbeat_idle: limits::HEARTBEAT_IDLE,
            session_silence_max: limits::SESSION_SILENCE_MAX,
            handshake_max: limits::HANDSHAKE_MAX,
            redial_min: limits::REDIAL_MIN,
            redial_max: limits::REDIAL_MAX,
            promise_wait: limits::PROMISE_WAIT,
            campaign_round_max: limits::CAMPAIGN_ROUND_MAX,
            campaign_retry_min: limits::CAMPAIGN_RETRY_MIN,
            campaign_retry_max: limits::CAMPAIGN_RETRY_MAX,
            recampaign_max: limits::RECAMPAIGN_MAX,
            quorum_wait: limits::QUORUM_WAIT,
            lossy_wait: Some(limits::LOSSY_WAIT),
            demote_after: limits::DEMOTE_AFTER,
            lag_age_max: limits::LAG_AGE_MAX,
            lag_age_min: limits::LAG_AGE_MIN,
            grant_margin: limits::GRANT_MARGIN,
            stop_wait: limits::STOP_WAIT,
            hedge_min: limits::HEDGE_MIN,
            hedge_max: limits::HEDGE_MAX,
            copy_lock_max: limits::COPY_LOCK_MAX,
        }
    }
}

/// Sizes. The defaults are in [`crate::limits`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Requests taken and not completed.
    pub requests_max: usize,
    /// Entries above tidx; at most the replicas' window slots less the reserve.
    pub window_entries: u64,
    /// Parts of one large request in flight.
    pub expand_parts_max: u32,
    /// Flush entries in flight.
    pub flushes_max: usize,
    /// Committed entries that a member may lack.
    pub lag_entries_max: u64,
    /// Committed bytes that a member may lack.
    pub lag_bytes_max: u64,
    /// Bytes per second that rebuilds may copy in all; 0: no limit.
    pub rebuild_bytes_per_second_max: u64,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            requests_max: limits::REQUESTS_MAX,
            window_entries: limits::WINDOW_SLOTS - limits::WINDOW_RESERVE,
            expand_parts_max: limits::EXPAND_PARTS_MAX,
            flushes_max: limits::FLUSHES_MAX,
            lag_entries_max: limits::LAG_ENTRIES_MAX,
            lag_bytes_max: limits::LAG_BYTES_MAX,
            rebuild_bytes_per_second_max: 0,
        }
    }
}

/// Everything an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This engine; new for each process.
    pub engine: Uuid,
    /// Its volume.
    pub volume: Uuid,
    /// An engine that the supervisor knows to be dead: its lease is released (M14). Or none.
    pub supersedes: Uuid,
    /// The volume's secret (M24).
    pub secret: Secret,
    /// The voters as far as the driver knows, and their addresses; the replicas know better when
    /// their configuration is of a higher generation.
    pub members: MemberSet,
    /// Identities that the replicas of these numbers must have; none: any. A number can be given to
    /// another replica once the one before was replaced, and the old one must not count for it.
    pub identities: [Uuid; MEMBERS_MAX],
    /// Members on this host, preferred for reads.
    pub local: MemberSet,
    /// Size of the volume in bytes; 0: learn it from the replicas.
    pub capacity_bytes: u64,
    /// Granted by the supervisor; a higher one fences lower ones.
    pub attach_epoch: u64,
    /// Generation of the configuration that `members` is: 1 as the volume was made, 0 when only the
    /// replicas know.
    pub cfg_gen: u64,
    /// Loss epoch that this engine's clients are bound to; `None`: the clients are fresh (M8).
    pub loss_bound: Option<u32>,
    /// Random bytes: seed of nonces and of jitter.
    pub entropy: [u8; 32],
    /// Times.
    pub timing: Timing,
    /// Sizes.
    pub sizes: Sizes,
    /// Comparison of the replicas.
    pub scrub: ScrubConfig,
}

/// Why a configuration is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// No member.
    NoMembers,
    /// A size is zero or above what the replicas can hold.
    Size(&'static str),
    /// The capacity is not a multiple of a block or above the largest volume.
    Capacity(u64),
    /// The engine's or the volume's identity is absent.
    Identity,
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ConfigError::NoMembers => f.write_str("engine configuration: no members"),
            ConfigError::Size(name) => write!(f, "engine configuration: {name} is out of range"),
            ConfigError::Capacity(bytes) => {
                write!(
                    f,
                    "engine configuration: capacity of {bytes} bytes is not allowed"
                )
            }
            ConfigError::Identity => {
                f.write_str("engine configuration: volume or engine identity is absent")
            }
        }
    }
}

impl core::error::Error for ConfigError {}

impl EngineConfig {
    /// A configuration with default times and sizes.
    #[must_use]
    pub fn new(
        engine: Uuid,
        volume: Uuid,
        secret: Secret,
        members: MemberSet,
        entropy: [u8; 32],
    ) -> EngineConfig {
        EngineConfig {
            engine,
            volume,
            supersedes: Uuid::NONE,
            secret,
            members,
            identities: [Uuid::NONE; MEMBERS_MAX],
            local: MemberSet::EMPTY,
            capacity_bytes: 0,
            attach_epoch: 0,
            cfg_gen: 0,
            loss_bound: None,
            entropy,
            timing: Timing::default(),
            sizes: Sizes::default(),
            scrub: ScrubConfig::default(),
        }
    }

    /// Voters that make a majority, as far as the driver knows them.
    pub fn majority(&self) -> usize {
        self.members.majority()
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = &self.sizes;
        if self.members.is_empty() {
            return Err(ConfigError::NoMembers);
        }
        if self.engine.is_none() || self.volume.is_none() {
            return Err(ConfigError::Identity);
        }
        if !self
            .capacity_bytes
            .is_multiple_of(u64::from(trilith_block::limits::BLOCK_BYTES))
            || self.capacity_bytes > trilith_block::limits::VOLUME_BYTES_MAX
        {
            return Err(ConfigError::Capacity(self.capacity_bytes));
        }
        for (name, ok) in [
            (
                "requests_max",
                sizes.requests_max > 0 && sizes.requests_max <= 1 << 16,
            ),
            (
                "window_entries",
                sizes.window_entries > 1
                    && sizes.window_entries <= limits::WINDOW_SLOTS - limits::WINDOW_RESERVE,
            ),
            ("expand_parts_max", sizes.expand_parts_max > 0),
            ("flushes_max", sizes.flushes_max > 0),
            ("lag_entries_max", sizes.lag_entries_max > 0),
            ("lag_bytes_max", sizes.lag_bytes_max > 0),
        ] {
            if !ok {
                return Err(ConfigError::Size(name));
            }
        }
        Ok(())
    }
}
