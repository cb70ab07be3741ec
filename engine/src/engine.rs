//! The volume machine.

use crate::api::{Action, Event, Mode, Waiting};
use crate::config::{ConfigError, EngineConfig};
use crate::status::Status;
use trilith_block::request::Target;
use trilith_block::{
    Actions, Buffers, ConnId, Machine, Monotonic, Request, Stream, VolumeInfo, Want,
};

/// The leader of one volume.
#[derive(Debug)]
pub struct Engine {
    cfg: EngineConfig,
}

impl Engine {
    /// An engine that starts to dial at its first `settle`.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(cfg: EngineConfig, now: Monotonic) -> Result<Engine, ConfigError> {
        cfg.validate()?;
        let _ = now;
        Ok(Engine { cfg })
    }

    /// How the volume is served now.
    pub fn mode(&self) -> Mode {
        Mode::Waiting(Waiting::Replicas)
    }

    /// What frontends need to know; `None` until a replica has told the capacity.
    pub fn info(&self) -> Option<VolumeInfo> {
        None
    }

    /// Loss epoch of the volume as of the last recovery: what the clients of this engine are bound
    /// to. `None` before the first.
    pub fn loss(&self) -> Option<u32> {
        None
    }

    /// Everything there is to show.
    pub fn status(&self, now: Monotonic) -> Status {
        let _ = now;
        Status {
            volume: self.cfg.volume,
            engine: self.cfg.engine,
            mode: self.mode(),
            term: trilith_block::Term(0),
            attach_epoch: self.cfg.attach_epoch,
            epoch: trilith_block::SyncEpoch::default(),
            in_sync: trilith_block::MemberSet::EMPTY,
            tracked: trilith_block::MemberSet::EMPTY,
            counted: trilith_block::MemberSet::EMPTY,
            loss: 0,
            capacity_bytes: 0,
            last: trilith_block::Idx(0),
            commit: trilith_block::Idx(0),
            tidx: trilith_block::Idx(0),
            requests: 0,
            requests_max: self.cfg.sizes.requests_max,
            entries: 0,
            waiting: 0,
            lease_left: core::time::Duration::ZERO,
            counters: crate::status::Counters::default(),
            latencies: crate::status::Latencies::default(),
            members: alloc::vec::Vec::new(),
        }
    }
}

impl Machine for Engine {
    type Event<'a> = Event<'a>;
    type Action = Action;

    fn step(
        &mut self,
        _now: Monotonic,
        _event: Event<'_>,
        _data: &mut dyn Buffers,
        _out: &mut Actions<Action>,
    ) {
    }

    fn settle(&mut self, _now: Monotonic, _data: &mut dyn Buffers, _out: &mut Actions<Action>) {}

    fn deadline(&self) -> Option<Monotonic> {
        None
    }
}

impl Stream for Engine {
    fn want(&mut self, _conn: ConnId, _data: &mut dyn Buffers) -> Want {
        Want::Pause
    }
}

impl Target for Engine {
    fn submit(
        &mut self,
        _now: Monotonic,
        request: Request,
        _data: &mut dyn Buffers,
    ) -> Result<(), Request> {
        Err(request)
    }
}
