//! What a connection has to send: heads and payloads in order, gathered into as few `sendmsg` as
//! possible, one in flight.

use crate::arena::{Arena, Loan};
use crate::limits::{OUTPUT_KEPT_BYTES_MAX, SEND_PIECES_MAX};
use core::mem;
use trilith_block::BufSlice;

/// A run of bytes to send.
#[derive(Debug)]
enum Run {
    /// Of the batch's heads.
    Head { start: usize, len: usize },
    /// Of the arena.
    Payload { loan: Loan, len: usize },
}

/// What goes out together.
#[derive(Debug, Default)]
struct Batch {
    heads: Vec<u8>,
    runs: Vec<Run>,
}

/// The output queue of a connection.
#[derive(Debug)]
pub(crate) struct Output {
    /// What has been queued since the batch in flight was made.
    waiting: Batch,
    /// The batch that is being sent. Never changed before all of it has left, so that the kernel's
    /// pointers into it stay good.
    flying: Batch,
    /// `flying` in the kernel's form; those before `first` have left.
    pieces: Vec<libc::iovec>,
    first: usize,
    message: Box<libc::msghdr>,
    in_flight: bool,
    queued: usize,
    /// Runs of `flying` that [`Output::take`] is done with, and bytes of the next one.
    taken: (usize, usize),
}

fn empty_message() -> libc::msghdr {
    libc::msghdr {
        msg_name: core::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: core::ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: core::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

/// Some of the bytes that one end of a connection within the loop has for the other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    /// Of a head.
    Bytes(&'a [u8]),
    /// Of a payload.
    Slice(BufSlice),
}

impl Output {
    pub(crate) fn new() -> Output {
        Output {
            waiting: Batch::default(),
            flying: Batch::default(),
            pieces: Vec::new(),
            first: 0,
            message: Box::new(empty_message()),
            in_flight: false,
            queued: 0,
            taken: (0, 0),
        }
    }

    /// Bytes not yet taken by the kernel.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Adds a frame. The payload is lent from now on.
    pub(crate) fn push(&mut self, head: &[u8], payload: Option<BufSlice>, arena: &mut Arena) {
        let batch = &mut self.waiting;
        if !head.is_empty() {
            let start = batch.heads.len();
            batch.heads.extend_from_slice(head);
            match batch.runs.last_mut() {
                // Heads without payload between them are one run.
                Some(Run::Head { start: first, len }) if *first + *len == start => {
                    *len += head.len();
                }
                _ => batch.runs.push(Run::Head {
                    start,
                    len: head.len(),
                }),
            }
            self.queued += head.len();
        }
        if let Some(slice) = payload.filter(|slice| slice.len > 0) {
            let loan = arena.lend(slice, false);
            batch.runs.push(Run::Payload {
                loan,
                len: slice.len as usize,
            });
            self.queued += slice.len as usize;
        }
    }

    /// The next `sendmsg`, if there is something to send and none is in flight.
    pub(crate) fn start(&mut self, arena: &Arena) -> Option<*const libc::msghdr> {
        if self.in_flight || self.queued == 0 {
            return None;
        }
        if self.first == self.pieces.len() {
            self.load(arena);
        }
        let pieces = &mut self.pieces[self.first..];
        self.message.msg_iov = pieces.as_mut_ptr();
        self.message.msg_iovlen = pieces.len().min(SEND_PIECES_MAX);
        self.in_flight = true;
        Some(&raw const *self.message)
    }

    /// Bytes of the `sendmsg` that was started last.
    pub(crate) fn next_bytes(&self) -> usize {
        let pieces = &self.pieces[self.first..];
        let taken = pieces.iter().take(SEND_PIECES_MAX);
        taken.map(|piece| piece.iov_len).sum()
    }

    /// Makes the waiting batch the flying one.
    fn load(&mut self, arena: &Arena) {
        debug_assert!(self.flying.runs.is_empty(), "a batch is overtaken");
        mem::swap(&mut self.waiting, &mut self.flying);
        self.pieces.clear();
        self.first = 0;
        for run in &self.flying.runs {
            let piece = match run {
                Run::Head { start, len } => {
                    let head = &self.flying.heads[*start..*start + *len];
                    libc::iovec {
                        iov_base: head.as_ptr().cast_mut().cast(),
                        iov_len: *len,
                    }
                }
                Run::Payload { loan, len } => libc::iovec {
                    iov_base: arena.loan_address(loan).cast(),
                    iov_len: *len,
                },
            };
            self.pieces.push(piece);
        }
    }

    /// Hands the next `len` bytes over in parts, for a connection that has no socket. A payload is
    /// given back as soon as all of it was handed over.
    ///
    /// # Panics
    /// When fewer are queued.
    pub(crate) fn take(
        &mut self,
        len: usize,
        arena: &mut Arena,
        mut each: impl FnMut(&mut Arena, Part<'_>),
    ) {
        assert!(len <= self.queued, "{len} bytes of {} taken", self.queued);
        self.queued -= len;
        let mut left = len;
        while left > 0 {
            let (at, skip) = self.taken;
            let Some(run) = self.flying.runs.get_mut(at) else {
                Output::forget(&mut self.flying, arena);
                mem::swap(&mut self.waiting, &mut self.flying);
                self.taken = (0, 0);
                continue;
            };
            let (whole, step) = match run {
                Run::Head { start, len } => {
                    let step = left.min(*len - skip);
                    let from = *start + skip;
                    each(arena, Part::Bytes(&self.flying.heads[from..from + step]));
                    (*len, step)
                }
                Run::Payload { loan, len } => {
                    let step = left.min(*len - skip);
                    let part = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
                    let slice = arena.loan_slice(loan);
                    each(arena, Part::Slice(slice.slice(part(skip), part(step))));
                    (*len, step)
                }
            };
            left -= step;
            self.taken = (at, skip + step);
            if self.taken.1 == whole {
                self.taken = (at + 1, 0);
                let spent = mem::replace(run, Run::Head { start: 0, len: 0 });
                if let Run::Payload { loan, .. } = spent {
                    arena.give_back(loan);
                }
            }
        }
    }

    /// The `sendmsg` in flight has ended.
    pub(crate) fn landed(&mut self) {
        self.in_flight = false;
    }

    /// It has taken so many bytes.
    pub(crate) fn sent(&mut self, bytes: usize, arena: &mut Arena) {
        self.queued -= bytes;
        let mut left = bytes;
        while left > 0 {
            let piece = &mut self.pieces[self.first];
            let step = left.min(piece.iov_len);
            // Only an address is computed here; it stays inside the piece or at its end.
            piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(step).cast();
            piece.iov_len -= step;
            left -= step;
            if piece.iov_len == 0 {
                self.first += 1;
            }
        }
        if self.first == self.pieces.len() {
            Output::forget(&mut self.flying, arena);
            self.pieces.clear();
            self.first = 0;
        }
    }

    fn forget(batch: &mut Batch, arena: &mut Arena) {
        for run in batch.runs.drain(..) {
            if let Run::Payload { loan, .. } = run {
                arena.give_back(loan);
            }
        }
        batch.heads.clear();
        batch.heads.shrink_to(OUTPUT_KEPT_BYTES_MAX);
    }

    /// Drops everything that has not left. Nothing may be in flight.
    pub(crate) fn abandon(&mut self, arena: &mut Arena) {
        assert!(!self.in_flight, "output dropped while the kernel reads it");
        Output::forget(&mut self.waiting, arena);
        Output::forget(&mut self.flying, arena);
        self.pieces.clear();
        self.first = 0;
        self.queued = 0;
        self.taken = (0, 0);
    }

    /// Owners of buffers are gone only through the arena.
    #[cfg(test)]
    pub(crate) fn release_check(arena: &mut Arena) -> bool {
        arena.reclaim();
        arena.lent() == 0 && arena.used() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::ArenaConfig;
    use trilith_block::Buffers;

    /// Everything that the kernel would read, taken in steps of `step` bytes.
    fn drain(output: &mut Output, arena: &mut Arena, step: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        while output.start(arena).is_some() {
            let mut taken = 0;
            for piece in output.pieces[output.first..].iter().take(SEND_PIECES_MAX) {
                let len = piece.iov_len.min(step - taken);
                // SAFETY: a piece names live bytes of a head or of a lent buffer.
                let bytes =
                    unsafe { core::slice::from_raw_parts(piece.iov_base.cast::<u8>(), len) };
                seen.extend_from_slice(bytes);
                taken += len;
                if taken == step {
                    break;
                }
            }
            output.landed();
            output.sent(taken, arena);
        }
        seen
    }

    #[test]
    fn bytes_leave_in_order_however_short_the_sends() {
        for step in [1, 7, 4096, 1 << 20] {
            let config = ArenaConfig {
                budget_bytes: 4 << 20,
                huge_pages: false,
            };
            let mut arena = Arena::new(config).unwrap();
            let mut output = Output::new();
            let mut expected = Vec::new();
            for round in 0..1500u32 {
                let head = round.to_le_bytes();
                let payload = if round % 2 == 0 {
                    arena.alloc(1 + round % 3)
                } else {
                    None
                };
                if let Some(slice) = payload {
                    arena.bytes_mut(slice).fill(0xaa);
                }
                output.push(&head, payload, &mut arena);
                expected.extend_from_slice(&head);
                if let Some(slice) = payload {
                    expected.extend_from_slice(arena.bytes(slice));
                    arena.release(slice.buf);
                }
            }
            assert_eq!(output.queued(), expected.len());
            assert_eq!(
                drain(&mut output, &mut arena, step),
                expected,
                "step {step}"
            );
            assert!(output.queued() == 0 && Output::release_check(&mut arena));
        }
    }

    #[test]
    fn abandoned_output_gives_its_buffers_back() {
        let config = ArenaConfig {
            budget_bytes: 1 << 20,
            huge_pages: false,
        };
        let mut arena = Arena::new(config).unwrap();
        let mut output = Output::new();
        for _ in 0..2 {
            let slice = arena.alloc(5000).unwrap();
            output.push(b"head", Some(slice), &mut arena);
            arena.release(slice.buf);
            assert!(output.in_flight() || output.start(&arena).is_some());
        }
        output.landed();
        output.abandon(&mut arena);
        assert!(output.queued() == 0 && Output::release_check(&mut arena));
    }
}
