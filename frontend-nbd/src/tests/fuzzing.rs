use crate::fuzz::fuzz_session;
use std::vec::Vec;

/// A small generator (xorshift64*); the same seed gives the same numbers.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

fn bytes(random: &mut Random, len: u64) -> Vec<u8> {
    (0..len)
        .map(|_| u8::try_from(random.below(256)).unwrap())
        .collect()
}

#[test]
fn random_scripts_neither_panic_nor_lose_buffers() {
    for seed in 1..=1500u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let len = 20 + random.below(400);
        let script = bytes(&mut random, len);
        fuzz_session(&script);
    }
}

#[test]
fn mutated_sessions_neither_panic_nor_lose_buffers() {
    for seed in 1..=1500u64 {
        let mut random = Random(seed.wrapping_mul(0xd134_2543_de82_ef95));
        // A connection in some mode, then commands, payload and completions; then damage.
        let mut script = std::vec![0, 5, u8::try_from(random.below(256)).unwrap()];
        let extended = script[2] % 3 == 2;
        for _ in 0..random.below(40) {
            let shape = u8::try_from(random.below(128)).unwrap();
            script.extend([6, if extended { shape | 0x80 } else { shape }]);
            script.extend(bytes(&mut random, 7));
            if random.below(2) == 0 {
                script.extend([10, 0x20]);
                script.extend(bytes(&mut random, 2));
            }
            script.extend([14, u8::try_from(random.below(256)).unwrap()]);
        }
        for _ in 0..random.below(4) {
            let at = usize::try_from(random.below(script.len() as u64)).unwrap();
            script[at] = u8::try_from(random.below(256)).unwrap();
        }
        fuzz_session(&script);
    }
}

#[test]
fn the_corpus_is_survived() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/nbd_session");
    let files: Vec<_> = std::fs::read_dir(dir).unwrap().collect();
    assert!(!files.is_empty());
    for file in files {
        fuzz_session(&std::fs::read(file.unwrap().path()).unwrap());
    }
}
