//! The loop itself. Each turn: one system call that submits and waits, completions into events,
//! events to the handler, `settle`, again while that brings more, then sends and receives are
//! queued for the next system call.

use crate::arena::{Arena, ArenaConfig};
use crate::backend::Backend;
use crate::error::RuntimeError;
use crate::handler::Handler;
use crate::io::{Event, Io};
use crate::limits::{FRAMES_PER_ROUND_MAX, ROUND_BYTES_MAX, ROUNDS_PER_TURN_MAX};
use crate::streams::Step;
use core::time::Duration;
use trilith_block::{ConnId, StreamEvent, Want};

/// How to make a loop.
#[derive(Clone, Copy, Debug)]
pub struct LoopConfig {
    /// Which way into the kernel.
    pub backend: Backend,
    /// The arena.
    pub arena: ArenaConfig,
    /// How long to look out for events before sleeping, while they come that fast; at most
    /// [`SPIN_TIME_MAX`](crate::limits::SPIN_TIME_MAX). Zero: sleep at once. The plain backend always does.
    pub spin: Duration,
}

impl Default for LoopConfig {
    fn default() -> Self {
        LoopConfig {
            backend: Backend::Auto,
            arena: ArenaConfig::of_process(),
            spin: Duration::ZERO,
        }
    }
}

/// One thread's loop: made, run and dropped on one thread (it is not `Send`).
///
/// Dropping it ends all connections without draining, waits for the disk, and gives the handler no
/// more events.
#[derive(Debug)]
pub struct Loop {
    io: Io,
    scratch: Vec<u8>,
    asked: Vec<ConnId>,
    /// Connections that have delivered their share of payload in this turn, and have more.
    cut: Vec<u32>,
}

impl Loop {
    /// Makes a loop.
    ///
    /// # Errors
    /// When the arena cannot be mapped, or the backend asked for cannot be set up.
    pub fn new(config: LoopConfig) -> Result<Loop, RuntimeError> {
        let arena = Arena::new(config.arena)?;
        let io = Io::new(config, arena)?;
        tracing::info!(
            backend = ?io.backend(),
            arena_bytes = config.arena.budget_bytes,
            "I/O loop is set up"
        );
        Ok(Loop {
            io,
            scratch: Vec::new(),
            asked: Vec::new(),
            cut: Vec::new(),
        })
    }

    /// To set things up with, before and between turns.
    pub fn io(&mut self) -> &mut Io {
        &mut self.io
    }

    /// Turns until [`Io::stop`] is called.
    ///
    /// # Errors
    /// When the kernel refuses to go on; nothing can be saved then.
    pub fn run<H: Handler>(&mut self, handler: &mut H) -> Result<(), RuntimeError> {
        while !self.io.stopped {
            self.turn(handler, Duration::MAX)?;
        }
        Ok(())
    }

    /// One turn that sleeps at most `wait`.
    ///
    /// # Errors
    /// As [`Loop::run`].
    pub fn turn<H: Handler>(
        &mut self,
        handler: &mut H,
        wait: Duration,
    ) -> Result<(), RuntimeError> {
        self.io.flush();
        let sleep = self.io.sleep_time(handler.deadline()).min(wait);
        self.io.enter(sleep)?;
        self.io.stats.turns += 1;
        self.io.expire();
        for _ in 0..ROUNDS_PER_TURN_MAX {
            self.deliver_events(handler);
            self.deliver_streams(handler);
            self.io.now = crate::clock::now();
            let now = self.io.now;
            handler.settle(&mut self.io, now);
            self.io.arena.reclaim();
            self.ask_paused(handler);
            if self.io.events.is_empty() && self.io.ready.is_empty() {
                break;
            }
        }
        // What a share of payload has brought about leaves before the next one is looked at.
        self.io.ready.extend(self.cut.drain(..));
        self.io.flush();
        Ok(())
    }

    /// All events there are now; what they bring about comes in the next round.
    fn deliver_events<H: Handler>(&mut self, handler: &mut H) {
        let io = &mut self.io;
        for _ in 0..io.events.len() {
            let Some(event) = io.events.pop_front() else {
                return;
            };
            match event {
                Event::Accepted(listener, id) => handler.accepted(io, listener, id),
                Event::Opened(id) => {
                    let Some(slot) = io.conns.slot_of(id) else {
                        continue;
                    };
                    let Some(conn) = io.conns.get(slot) else {
                        continue;
                    };
                    if conn.phase == crate::conn::Phase::Open {
                        conn.announced = true;
                        handler.stream(io, id, StreamEvent::Opened);
                        io.mark_ready(slot);
                    }
                }
                Event::Closed(id) => handler.stream(io, id, StreamEvent::Closed),
                Event::Disk(done) => handler.disk(io, done),
                Event::Signal(signal) => handler.signal(io, signal),
                Event::Message(message) => handler.message(io, message),
                Event::Ublk(fetched) => handler.ublk(io, fetched),
            }
        }
    }

    fn deliver_streams<H: Handler>(&mut self, handler: &mut H) {
        for _ in 0..self.io.ready.len() {
            let Some(slot) = self.io.ready.pop_front() else {
                return;
            };
            let Some(conn) = self.io.conns.get(slot) else {
                continue;
            };
            conn.is_ready = false;
            let id = conn.id;
            self.deliver_stream(handler, slot, id);
            self.io.mark_dirty(slot);
        }
    }

    /// Frames of one connection, many per receive, until it runs dry or has had its share.
    fn deliver_stream<H: Handler>(&mut self, handler: &mut H, slot: u32, id: ConnId) {
        let mut frames = 0;
        let (mut bytes, mut wanted) = (0, 0);
        while frames < FRAMES_PER_ROUND_MAX {
            if bytes >= ROUND_BYTES_MAX && self.io.has_unread(slot) {
                return self.set_aside(slot);
            }
            match self.io.step(slot, id, &mut self.scratch) {
                Step::Ask => {
                    let want = handler.want(&mut self.io, id);
                    if let Want::Payload(slice) = want {
                        wanted = slice.len;
                    }
                    if !self.io.wanted(slot, want) {
                        return;
                    }
                }
                Step::Header => {
                    frames += 1;
                    handler.stream(&mut self.io, id, StreamEvent::Header(&self.scratch));
                }
                Step::Payload => {
                    frames += 1;
                    bytes += core::mem::take(&mut wanted);
                    handler.stream(&mut self.io, id, StreamEvent::Payload);
                }
                Step::Wait | Step::Gone => return,
            }
        }
        self.io.mark_ready(slot);
    }

    /// It is looked at again in the next turn, and not before.
    fn set_aside(&mut self, slot: u32) {
        if let Some(conn) = self.io.conns.get(slot)
            && !conn.is_ready
        {
            conn.is_ready = true;
            self.cut.push(slot);
        }
    }

    /// Asks those who wanted nothing again.
    fn ask_paused<H: Handler>(&mut self, handler: &mut H) {
        core::mem::swap(&mut self.asked, &mut self.io.paused);
        for at in 0..self.asked.len() {
            let id = self.asked[at];
            let Some(slot) = self.io.conns.slot_of(id) else {
                continue;
            };
            let open =
                self.io.conns.get(slot).is_some_and(|conn| {
                    conn.phase == crate::conn::Phase::Open && conn.want.is_none()
                });
            if !open {
                continue;
            }
            let want = handler.want(&mut self.io, id);
            if want == Want::Pause {
                self.io.paused.push(id);
            } else if self.io.wanted(slot, want) {
                self.io.mark_ready(slot);
            }
        }
        self.asked.clear();
    }

    /// True when no buffer has an owner and the kernel has none: what a clean stop leaves.
    pub fn is_at_rest(&mut self) -> bool {
        self.io.arena.reclaim();
        let arena = self.io.arena();
        arena.lent() == 0 && arena.used() == 0
    }
}
