//! Operational parameters and their negotiation (RFC 7143 13): every key of section 13, within our
//! limits. Keys of the security stage are in `login.rs`.

use crate::limits::{
    BURST_BYTES_MAX, FIRST_BURST_BYTES_MAX, R2TS_MAX, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX,
};
use crate::text::{add, number};
use alloc::string::ToString;
use alloc::vec::Vec;

/// What a connection and its session have agreed on. Starts with the defaults of the RFC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Params {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
    /// MaxRecvDataSegmentLength of the initiator, in bytes.
    pub(crate) peer_segment: u32,
    pub(crate) burst_bytes: u32,
    pub(crate) first_burst_bytes: u32,
    pub(crate) r2ts: u32,
    pub(crate) discovery: bool,
    /// Bits of the keys answered so far: a key is negotiated once.
    seen: u32,
    /// Our own MaxRecvDataSegmentLength has been declared.
    declared: bool,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            peer_segment: SEGMENT_BYTES_DEFAULT,
            burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            r2ts: 1,
            discovery: false,
            seen: 0,
            declared: false,
        }
    }
}

/// Why a negotiation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadValue;

/// Keys that are negotiated here, in the order of the bits of `Params::seen`.
const KEYS: &[&str] = &[
    "HeaderDigest",
    "DataDigest",
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxRecvDataSegmentLength",
    "MaxBurstLength",
    "FirstBurstLength",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "ErrorRecoveryLevel",
    "TaskReporting",
    "iSCSIProtocolLevel",
    "IFMarker",
    "OFMarker",
    "IFMarkInt",
    "OFMarkInt",
];

fn yes(value: &str) -> Result<bool, BadValue> {
    match value {
        "Yes" => Ok(true),
        "No" => Ok(false),
        _ => Err(BadValue),
    }
}

fn text(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// The first of the offered values that we know.
fn choose<'a>(offer: &str, known: &[&'a str]) -> Option<&'a str> {
    offer
        .split(',')
        .find_map(|value| known.iter().find(|k| **k == value).copied())
}

fn ranged(value: &str, low: u32, high: u32) -> Result<u32, BadValue> {
    number(value)
        .filter(|n| (low..=high).contains(n))
        .ok_or(BadValue)
}

impl Params {
    /// True when the key is one of those negotiated here.
    pub(crate) fn knows(key: &str) -> bool {
        KEYS.contains(&key)
    }

    /// Takes an offer and appends our answer, if the key has one. `login`: keys that may only be
    /// negotiated in the login phase are allowed.
    ///
    /// # Errors
    /// A value outside of its range, or a key offered for the second time.
    pub(crate) fn offer(
        &mut self,
        key: &str,
        value: &str,
        login: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), BadValue> {
        let at = KEYS.iter().position(|k| *k == key).ok_or(BadValue)?;
        // RFC 7143 13.12: the segment length may be declared again in full feature phase; the
        // other keys are for the login only.
        let again = key == "MaxRecvDataSegmentLength" && !login;
        if !login && !again {
            add(out, key, "Reject");
            return Ok(());
        }
        if self.seen & 1 << at != 0 && !again {
            return Err(BadValue);
        }
        self.seen |= 1 << at;
        match key {
            "HeaderDigest" | "DataDigest" => self.digest(key, value, out),
            "InitialR2T"
            | "ImmediateData"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "IFMarker"
            | "OFMarker" => return self.boolean(key, value, out),
            "TaskReporting" => match choose(value, &["ResponseFence", "RFC3720"]) {
                Some(chosen) => add(out, key, chosen),
                None => add(out, key, "Reject"),
            },
            // RFC 7143 13.26: intervals of markers are obsolete.
            "IFMarkInt" | "OFMarkInt" => add(out, key, "Reject"),
            _ => return self.numeric(key, value, out),
        }
        Ok(())
    }

    fn digest(&mut self, key: &str, value: &str, out: &mut Vec<u8>) {
        let chosen = choose(value, &["CRC32C", "None"]);
        let on = chosen == Some("CRC32C");
        if key == "HeaderDigest" {
            self.header_digest = on;
        } else {
            self.data_digest = on;
        }
        add(out, key, chosen.unwrap_or("Reject"));
    }

    fn boolean(&mut self, key: &str, value: &str, out: &mut Vec<u8>) -> Result<(), BadValue> {
        let offer = yes(value)?;
        let result = match key {
            // RFC 7143 13.10: the result is OR; we can do without.
            "InitialR2T" => {
                self.initial_r2t = offer;
                offer
            }
            // 13.11: the result is AND; we take immediate data.
            "ImmediateData" => {
                self.immediate_data = offer;
                offer
            }
            // 13.18, 13.19: the result is OR, and we want order.
            "DataPDUInOrder" | "DataSequenceInOrder" => true,
            // 13.26: no markers.
            _ => false,
        };
        let irrelevant = self.discovery && !key.ends_with("Marker");
        add(
            out,
            key,
            if irrelevant {
                "Irrelevant"
            } else {
                text(result)
            },
        );
        Ok(())
    }

    fn numeric(&mut self, key: &str, value: &str, out: &mut Vec<u8>) -> Result<(), BadValue> {
        let length = |value| ranged(value, 512, 0xff_ffff);
        let result = match key {
            "MaxRecvDataSegmentLength" => {
                self.peer_segment = length(value)?;
                return Ok(());
            }
            "MaxBurstLength" => {
                self.burst_bytes = length(value)?.min(BURST_BYTES_MAX);
                self.burst_bytes
            }
            "FirstBurstLength" => {
                self.first_burst_bytes = length(value)?.min(FIRST_BURST_BYTES_MAX);
                self.first_burst_bytes
            }
            "MaxConnections" => ranged(value, 1, 65_535)?.min(1),
            // 13.15: the result is the larger one; 2 seconds is the default.
            "DefaultTime2Wait" => ranged(value, 0, 3600)?.max(2),
            // 13.16: the result is the smaller one; no task outlives its connection (ERL 0).
            "DefaultTime2Retain" => {
                ranged(value, 0, 3600)?;
                0
            }
            "MaxOutstandingR2T" => {
                self.r2ts = ranged(value, 1, 65_535)?.min(R2TS_MAX);
                self.r2ts
            }
            "ErrorRecoveryLevel" => {
                ranged(value, 0, 2)?;
                0
            }
            "iSCSIProtocolLevel" => ranged(value, 0, 31)?.min(1),
            _ => return Err(BadValue),
        };
        if self.discovery
            && key != "ErrorRecoveryLevel"
            && key != "iSCSIProtocolLevel"
            && !key.starts_with("DefaultTime")
        {
            add(out, key, "Irrelevant");
        } else {
            add(out, key, &result.to_string());
        }
        Ok(())
    }

    /// Declares what is ours to declare, once, in the operational stage.
    pub(crate) fn declare(&mut self, out: &mut Vec<u8>) {
        if !self.declared {
            self.declared = true;
            add(
                out,
                "MaxRecvDataSegmentLength",
                &SEGMENT_BYTES_MAX.to_string(),
            );
        }
    }

    /// Called at the end of the login: relations between the values hold from here on.
    pub(crate) fn finish(&mut self) {
        // RFC 7143 13.14: FirstBurstLength must not exceed MaxBurstLength.
        self.first_burst_bytes = self.first_burst_bytes.min(self.burst_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn answer(params: &mut Params, key: &str, value: &str) -> String {
        let mut out = Vec::new();
        match params.offer(key, value, true, &mut out) {
            Ok(()) => String::from_utf8(out)
                .unwrap()
                .trim_end_matches('\0')
                .into(),
            Err(BadValue) => "error".into(),
        }
    }

    #[test]
    fn every_key_is_answered_within_our_limits() {
        for (key, offer, expected) in [
            ("HeaderDigest", "CRC32C,None", "HeaderDigest=CRC32C"),
            ("HeaderDigest", "None,CRC32C", "HeaderDigest=None"),
            ("DataDigest", "FANCY,CRC32C", "DataDigest=CRC32C"),
            ("DataDigest", "FANCY", "DataDigest=Reject"),
            ("MaxConnections", "8", "MaxConnections=1"),
            ("InitialR2T", "No", "InitialR2T=No"),
            ("InitialR2T", "Yes", "InitialR2T=Yes"),
            ("InitialR2T", "yes", "error"),
            ("ImmediateData", "No", "ImmediateData=No"),
            ("MaxRecvDataSegmentLength", "262144", ""),
            ("MaxRecvDataSegmentLength", "511", "error"),
            ("MaxBurstLength", "16776192", "MaxBurstLength=1048576"),
            ("FirstBurstLength", "262144", "FirstBurstLength=262144"),
            ("FirstBurstLength", "16777216", "error"),
            ("DefaultTime2Wait", "0", "DefaultTime2Wait=2"),
            ("DefaultTime2Retain", "20", "DefaultTime2Retain=0"),
            ("MaxOutstandingR2T", "1", "MaxOutstandingR2T=1"),
            ("MaxOutstandingR2T", "64", "MaxOutstandingR2T=4"),
            ("DataPDUInOrder", "No", "DataPDUInOrder=Yes"),
            ("DataSequenceInOrder", "Yes", "DataSequenceInOrder=Yes"),
            ("ErrorRecoveryLevel", "2", "ErrorRecoveryLevel=0"),
            ("ErrorRecoveryLevel", "3", "error"),
            (
                "TaskReporting",
                "FastAbort,RFC3720",
                "TaskReporting=RFC3720",
            ),
            ("iSCSIProtocolLevel", "2", "iSCSIProtocolLevel=1"),
            ("IFMarker", "Yes", "IFMarker=No"),
            ("OFMarkInt", "2048", "OFMarkInt=Reject"),
        ] {
            assert_eq!(
                answer(&mut Params::default(), key, offer),
                expected,
                "{key}={offer}"
            );
        }
    }

    #[test]
    fn a_key_is_negotiated_once() {
        let mut params = Params::default();
        answer(&mut params, "InitialR2T", "No");
        assert_eq!(answer(&mut params, "InitialR2T", "No"), "error");
    }

    #[test]
    fn the_first_burst_fits_the_burst() {
        let mut params = Params::default();
        answer(&mut params, "MaxBurstLength", "4096");
        params.finish();
        assert_eq!(params.first_burst_bytes, 4096);
    }
}
