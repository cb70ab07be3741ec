//! What happened in a run, in words. Kept only when somebody will read it: a failing seed is run
//! again with the story on.

use crate::world::Nanos;
use std::collections::VecDeque;
use trilith_wire::Kind;

/// How much is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Detail {
    /// Nothing.
    Off,
    /// Who did what.
    Events,
    /// Every request and frame too.
    Frames,
}

/// Lines of the story that are kept.
pub const LINES_MAX: usize = 200_000;

/// The story.
#[derive(Debug)]
pub struct Story {
    detail: Detail,
    lines: VecDeque<(Nanos, String)>,
}

impl Story {
    /// An empty story.
    pub fn new(detail: Detail) -> Story {
        Story {
            detail,
            lines: VecDeque::new(),
        }
    }

    /// Adds a line.
    pub fn tell(&mut self, now: Nanos, line: impl FnOnce() -> String) {
        self.add(Detail::Events, now, line);
    }

    /// Adds a line that only a close look needs.
    pub fn detail(&mut self, now: Nanos, line: impl FnOnce() -> String) {
        self.add(Detail::Frames, now, line);
    }

    fn add(&mut self, detail: Detail, now: Nanos, line: impl FnOnce() -> String) {
        if self.detail >= detail {
            if self.lines.len() >= LINES_MAX {
                self.lines.pop_front();
            }
            self.lines.push_back((now, line()));
        }
    }

    /// Adds a frame that a process sends.
    pub fn frame(&mut self, now: Nanos, host: usize, line: u64, head: &[u8]) {
        self.add(Detail::Frames, now, || {
            let number = |at: usize| {
                head.get(at..at + 8)
                    .and_then(|b| b.try_into().ok())
                    .map_or(0, u64::from_le_bytes)
            };
            let small = |at: usize| {
                head.get(at..at + 4)
                    .and_then(|b| b.try_into().ok())
                    .map_or(0, u32::from_le_bytes)
            };
            let kind = head.get(3).and_then(|b| Kind::from_byte(*b));
            let kind = kind.map_or("?".to_string(), |k| format!("{k:?}"));
            format!(
                "host {host} line {line}: {kind} term {} idx {} a0 {} a1 {} a2 {} a3 {} a4 {}",
                number(16),
                number(24),
                number(32),
                small(40),
                small(44),
                number(48),
                number(56)
            )
        });
    }

    /// The story as text: seconds, then what happened.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (at, line) in &self.lines {
            out.push_str(&format!("{:>12.6} {line}\n", *at as f64 / 1e9));
        }
        out
    }
}
