//! Feeds `trilith_frontend_iscsi::fuzz::fuzz_login_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trilith_frontend_iscsi::fuzz::fuzz_login_text(bytes));
