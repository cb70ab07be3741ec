//! What the driver tells a replica at its start. Limits and times are here too, so that the
//! simulator can shrink them.

use crate::limits;
use crate::store::OpenParams;
use core::fmt;
use core::time::Duration;
use trilith_block::Uuid;
use trilith_wire::auth::Secret;

/// Configuration of a [`crate::Replica`].
#[derive(Clone)]
pub struct Config {
    /// Volume that must be found in the store; [`Uuid::NONE`]: whichever is there.
    pub volume: Uuid,
    /// The volume's secret (M24).
    pub secret: Secret,
    /// 32 random bytes, fresh for each process: nonces are made from them.
    pub entropy: [u8; 32],
    /// The host, and how the data file is to be treated.
    pub open: OpenParams,
    /// Lease granted to a live engine (5.5).
    pub lease: Duration,
    /// Time from a connection to WELCOME.
    pub handshake: Duration,
    /// Payload bytes an engine may have in flight here.
    pub credit_bytes: u32,
}

impl fmt::Debug for Config {
    /// Without the secret and what nonces are made of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("volume", &self.volume)
            .field("open", &self.open)
            .field("lease", &self.lease)
            .field("handshake", &self.handshake)
            .field("credit_bytes", &self.credit_bytes)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The usual limits and times.
    pub fn new(volume: Uuid, secret: Secret, entropy: [u8; 32], open: OpenParams) -> Config {
        Config {
            volume,
            secret,
            entropy,
            open,
            lease: limits::LEASE,
            handshake: limits::HANDSHAKE_TIME,
            credit_bytes: limits::CREDIT_BYTES,
        }
    }
}
