//! Text of login and text requests: `key=value` pairs, each ended by a NUL (RFC 7143 6.1).

use crate::limits::KEYS_MAX;
use alloc::vec::Vec;

/// Why a text cannot be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadText;

/// The pairs of a text, in order. Empty pieces (stray NULs) are left out.
///
/// # Errors
/// A pair without `=`, an illegal key, a value that is not UTF-8, or more than [`KEYS_MAX`] pairs.
pub(crate) fn pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, BadText> {
    let mut pairs = Vec::new();
    for piece in text.split(|b| *b == 0).filter(|piece| !piece.is_empty()) {
        let piece = core::str::from_utf8(piece).map_err(|_| BadText)?;
        let (key, value) = piece.split_once('=').ok_or(BadText)?;
        // RFC 7143 6.1: at most 63 characters, the first a capital letter.
        if key.len() > 63 || !key.starts_with(|c: char| c.is_ascii_uppercase()) {
            return Err(BadText);
        }
        if pairs.len() == KEYS_MAX {
            return Err(BadText);
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// Appends a pair.
pub(crate) fn add(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A number: decimal or `0x` and hexadecimal digits.
pub(crate) fn number(value: &str) -> Option<u32> {
    let hex = value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"));
    let (digits, radix) = hex.map_or((value, 10), |digits| (digits, 16));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn pairs_are_split_at_the_first_equals_sign() {
        assert_eq!(
            pairs(b"A=b=c\0\0InitiatorName=iqn.x\0"),
            Ok(vec![("A", "b=c"), ("InitiatorName", "iqn.x")])
        );
        assert_eq!(
            pairs(b"Last=without end"),
            Ok(vec![("Last", "without end")])
        );
    }

    #[test]
    fn bad_text_is_an_error() {
        for text in [&b"novalue\0"[..], b"lower=1\0", b"A=\xff\0", b"=x\0"] {
            assert_eq!(pairs(text), Err(BadText), "{text:?}");
        }
        let many: Vec<u8> = b"K=v\0".repeat(KEYS_MAX + 1);
        assert_eq!(pairs(&many), Err(BadText));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        for (text, expected) in [
            ("0", Some(0)),
            ("262144", Some(262_144)),
            ("0x10", Some(16)),
            ("", None),
            ("0x", None),
            ("+1", None),
            ("4294967296", None),
            ("1k", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
