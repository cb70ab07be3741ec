//! Values as people write and read them.

use core::time::Duration;
use trilith_block::limits::{BLOCK_BYTES, VOLUME_BYTES_MAX};

const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Bytes from text: a whole number with an optional KiB, MiB, GiB or TiB (or K, M, G, T).
///
/// # Errors
/// A sentence that names what was expected.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong =
        || format!("expected a number of bytes such as 10GiB, 512MiB or 4096, found {text:?}");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" | "B" => 1,
        _ => UNITS
            .iter()
            .find(|(name, _)| unit == *name || unit == &name[..1])
            .map(|(_, factor)| *factor)
            .ok_or_else(wrong)?,
    };
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("expected less than 16 EiB, found {text:?}"))
}

/// Size of a volume from text.
///
/// # Errors
/// When it is no number of bytes, not a multiple of 4096, zero, or above the largest volume.
pub(crate) fn parse_volume_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes == 0 || !bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
        return Err(format!(
            "expected a positive multiple of {BLOCK_BYTES} bytes, found {bytes}"
        ));
    }
    if bytes > VOLUME_BYTES_MAX {
        return Err(format!(
            "expected at most {}, found {}",
            bytes_text(VOLUME_BYTES_MAX),
            bytes_text(bytes)
        ));
    }
    Ok(bytes)
}

/// Name of a volume: it is part of URIs and file names.
///
/// # Errors
/// When it is empty, too long, or has other characters than letters, digits, `-`, `_` and `.`.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > crate::limits::NAME_BYTES_MAX || !text.chars().all(usable) {
        return Err(format!(
            "expected 1 to {} letters, digits, '-', '_' or '.', found {text:?}",
            crate::limits::NAME_BYTES_MAX
        ));
    }
    Ok(text.to_owned())
}

/// Bytes for people: exact when a unit divides them, else with one decimal.
pub(crate) fn bytes_text(bytes: u64) -> String {
    for (unit, factor) in UNITS {
        if bytes >= factor {
            return if bytes.is_multiple_of(factor) {
                format!("{} {unit}", bytes / factor)
            } else {
                let tenths = (u128::from(bytes) * 10 / u128::from(factor)) as f64 / 10.0;
                format!("{tenths:.1} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

/// Microseconds for people.
pub(crate) fn micros_text(micros: u64) -> String {
    match micros {
        0..=9_999 => format!("{micros} us"),
        10_000..=9_999_999 => format!("{} ms", micros / 1000),
        _ => format!("{} s", micros / 1_000_000),
    }
}

/// A span of time for people, by its two largest units.
pub(crate) fn span_text(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_unit_are_read() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("8K", 8192),
            ("8KiB", 8192),
            ("3M", 3 << 20),
            ("10GiB", 10 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "G",
            "1.5G",
            "-1",
            "10GB",
            "10 GiB",
            "1GiBB",
            "99999999999T",
            "1g",
        ] {
            assert!(parse_bytes(text).is_err(), "{text:?} is no size");
        }
    }

    #[test]
    fn volume_sizes_are_positive_multiples_of_a_block() {
        assert_eq!(parse_volume_size("16T"), Ok(16 << 40));
        for text in ["0", "4095", "4097", "1023K", "17T"] {
            let problem = parse_volume_size(text).unwrap_err();
            assert!(problem.starts_with("expected"), "{text}: {problem}");
        }
    }

    #[test]
    fn names_are_safe_in_uris_and_paths() {
        assert!(parse_name("vol-1.a_B").is_ok());
        for name in ["", "a b", "a/b", "\u{e4}", &"x".repeat(129)] {
            assert!(parse_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn values_are_shown_with_their_unit() {
        assert_eq!(bytes_text(10 << 30), "10 GiB");
        assert_eq!(bytes_text(1536), "1.5 KiB");
        assert_eq!(bytes_text(17), "17 B");
        assert_eq!(micros_text(420), "420 us");
        assert_eq!(micros_text(12_345), "12 ms");
        assert_eq!(span_text(Duration::from_secs(61)), "1 min 1 s");
        assert_eq!(span_text(Duration::from_secs(90_000)), "1 d 1 h");
    }
}
