//! Feeds `trilith_frontend_iscsi::fuzz::fuzz_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trilith_frontend_iscsi::fuzz::fuzz_session(bytes));
