//! CHAP (RFC 1994, RFC 7143 12.1.3): algorithms, binary values and responses. Nothing here logs
//! or prints a secret.

use crate::limits::CHAP_BYTES_MAX;
use alloc::vec::Vec;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;

/// A hash that CHAP can use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Algorithm {
    Md5,
    Sha1,
    Sha256,
    Sha3,
}

impl Algorithm {
    /// By its number in CHAP_A.
    pub(crate) fn of(number: u32) -> Option<Algorithm> {
        match number {
            5 => Some(Algorithm::Md5),
            6 => Some(Algorithm::Sha1),
            7 => Some(Algorithm::Sha256),
            8 => Some(Algorithm::Sha3),
            _ => None,
        }
    }

    /// Its number as text.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Algorithm::Md5 => "5",
            Algorithm::Sha1 => "6",
            Algorithm::Sha256 => "7",
            Algorithm::Sha3 => "8",
        }
    }

    /// The response to a challenge: the hash of identifier, secret and challenge.
    pub(crate) fn response(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
            let mut hash = D::new();
            hash.update([id]);
            hash.update(secret);
            hash.update(challenge);
            hash.finalize().to_vec()
        }
        match self {
            Algorithm::Md5 => hash::<Md5>(id, secret, challenge),
            Algorithm::Sha1 => hash::<Sha1>(id, secret, challenge),
            Algorithm::Sha256 => hash::<Sha256>(id, secret, challenge),
            Algorithm::Sha3 => hash::<Sha3_256>(id, secret, challenge),
        }
    }
}

/// Compares in a time that depends on the lengths only.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y));
    a.len() == b.len() && differ == 0
}

/// A binary value: `0x` and hexadecimal digits, or `0b` and base64 (RFC 7143 6.1).
pub(crate) fn decode(value: &str) -> Option<Vec<u8>> {
    if value.len() > 2 + 2 * CHAP_BYTES_MAX {
        return None;
    }
    let (head, digits) = value.split_at_checked(2)?;
    let bytes = match head {
        "0x" | "0X" => decode_hex(digits),
        "0b" | "0B" => decode_base64(digits),
        _ => None,
    }?;
    (bytes.len() <= CHAP_BYTES_MAX).then_some(bytes)
}

fn decode_hex(digits: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let digits = digits.as_bytes();
    let mut nibbles = digits.iter().map(|d| char::from(*d).to_digit(16));
    if digits.len() % 2 == 1 {
        out.push(u8::try_from(nibbles.next()??).ok()?);
    }
    while let Some(high) = nibbles.next() {
        let low = nibbles.next()??;
        out.push(u8::try_from(high? << 4 | low).ok()?);
    }
    (!out.is_empty()).then_some(out)
}

fn decode_base64(digits: &str) -> Option<Vec<u8>> {
    let body = digits.trim_end_matches('=');
    if !digits.len().is_multiple_of(4) || digits.len() - body.len() > 2 {
        return None;
    }
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in body.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    (!out.is_empty()).then_some(out)
}

/// A binary value as hexadecimal text.
pub(crate) fn encode(bytes: &[u8]) -> alloc::string::String {
    let mut text = alloc::string::String::from("0x");
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text
}

/// Challenges: a hash over a secret seed and a counter, so that no two are alike and none can be
/// foretold.
pub(crate) struct Challenges {
    seed: [u8; 32],
    count: u64,
}

impl core::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Challenges")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Challenges {
    /// Challenges from 32 random bytes.
    pub(crate) fn new(seed: [u8; 32]) -> Challenges {
        Challenges { seed, count: 0 }
    }

    /// The next one, with its identifier.
    pub(crate) fn next(&mut self) -> (u8, [u8; 32]) {
        self.count += 1;
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.count.to_be_bytes());
        let challenge: [u8; 32] = hash.finalize().into();
        let mut hash = Sha256::new();
        hash.update(challenge);
        hash.update(self.seed);
        (hash.finalize()[0], challenge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_values_are_hexadecimal_or_base64() {
        assert_eq!(decode("0x00fF1"), Some(std::vec![0, 0x0f, 0xf1]));
        assert_eq!(decode("0bAQID"), Some(std::vec![1, 2, 3]));
        assert_eq!(decode("0bAQI="), Some(std::vec![1, 2]));
        for bad in [
            "",
            "0x",
            "0b",
            "12",
            "0xg0",
            "0bA",
            "0bAQI",
            "0b=AQI",
            "0bA\u{fc}=",
        ] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(
            decode(&encode(&[0, 1, 254, 255])),
            Some(std::vec![0, 1, 254, 255])
        );
    }

    #[test]
    fn responses_are_those_of_the_algorithms() {
        // Computed with Python's hashlib over b"\x27" + b"secretsecret" + b"challenge".
        for (algorithm, expected) in [
            (Algorithm::Md5, "0xaecf47be2bf504cacbd3da1c8f350724"),
            (
                Algorithm::Sha1,
                "0x1a14bca4483023f87b2b2b0bf0410713f400e657",
            ),
            (
                Algorithm::Sha256,
                "0xdb126f9ad7e3bf456f3e53feec65d238d2ca020fc68990b661fcebb3b4f6fcc5",
            ),
            (
                Algorithm::Sha3,
                "0x762a299f4421ba9c51c32eb17ad2314845d5638a7c9448aa4213c69f6641d09e",
            ),
        ] {
            let response = algorithm.response(0x27, b"secretsecret", b"challenge");
            assert_eq!(encode(&response), expected, "{algorithm:?}");
        }
    }

    #[test]
    fn challenges_differ() {
        let mut challenges = Challenges::new([7; 32]);
        let (_, first) = challenges.next();
        assert_ne!(first, challenges.next().1);
        assert_ne!(first, Challenges::new([8; 32]).next().1);
    }
}
