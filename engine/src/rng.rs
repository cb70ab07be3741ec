//! Jitter and nonces from the configuration's entropy (xoshiro256**). The nonces only need to be
//! fresh, not secret.

use core::time::Duration;

/// A generator.
#[derive(Debug)]
pub(crate) struct Rng {
    state: [u64; 4],
}

impl Rng {
    pub(crate) fn new(entropy: &[u8; 32]) -> Rng {
        let mut state = [0x9e37_79b9_7f4a_7c15u64; 4];
        for (word, bytes) in state.iter_mut().zip(entropy.chunks_exact(8)) {
            let mut raw = [0u8; 8];
            raw.copy_from_slice(bytes);
            // Never all zero, which would be a fixed point.
            *word ^= u64::from_le_bytes(raw);
        }
        state[0] |= 1;
        Rng { state }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    pub(crate) fn nonce(&mut self) -> [u8; 32] {
        let mut nonce = [0; 32];
        for part in nonce.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        nonce
    }

    /// A time between half of `span` and `span`.
    pub(crate) fn jitter(&mut self, span: Duration) -> Duration {
        let half = u64::try_from(span.as_nanos() / 2).unwrap_or(u64::MAX);
        Duration::from_nanos(half + self.next() % half.max(1))
    }
}

/// A number of the same entropy that is none of the generator's.
pub(crate) fn mixed(entropy: &[u8; 32]) -> u64 {
    entropy.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
