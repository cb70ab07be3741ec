//! The ublk device of an engine: when it is made, taken over, removed or left to the next engine.
//!
//! It is opened once the volume can be written, so that nobody's first requests fail; but one that a
//! dead engine has left is taken over already while a loss waits to be accepted, so that what its users
//! asked for before ends with the acceptance and is not done after it (docs/protocol.md, C16). A stop
//! removes it first, while everything still works; but a device that is in use, and any device when
//! it is not the operator who ends this process, stays: what was asked for and not answered waits for
//! the next engine.

use crate::cli::UblkArgs;
use crate::control::News as Word;
use crate::exit::setup;
use crate::host::Outbox;
use crate::host::process::Supervisor;
use crate::limits::UBLK_RETRY;
use anyhow::{Context, ensure};
use trilith_block::{FrontendEvent, Machine, Monotonic, VolumeInfo};
use trilith_engine::{Mode, Waiting};
use trilith_frontend_ublk::{
    Control, Device, DeviceConfig, Features, Mark, News, Params, UblkAction, UblkConfig, UblkEvent,
    UblkServer, UblkStatus,
};
use trilith_runtime::{Arena, Backend, Io};

/// Where the device is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The volume has not served yet, or opening failed.
    Closed,
    /// On its way.
    Opening,
    /// `/dev/ublkbN` is there.
    Live { number: u32, recovered: bool },
    /// On its way out, or left to the next engine if it is in use.
    Leaving,
    /// Gone, or left to the next engine.
    Over,
}

/// What is asked of the device's thread; [`News`] tell how it went.
pub(super) trait Hand: std::fmt::Debug {
    /// As [`Device::open`].
    fn open(&self);
    /// As [`Device::take_over`].
    fn take_over(&self);
    /// As [`Device::stop`].
    fn stop(&self);
    /// As [`Device::remove`].
    fn remove(&self);
}

impl Hand for Device {
    fn open(&self) {
        Device::open(self);
    }

    fn take_over(&self) {
        Device::take_over(self);
    }

    fn stop(&self) {
        Device::stop(self);
    }

    fn remove(&self) {
        Device::remove(self);
    }
}

/// The device's machine, and the device.
#[derive(Debug)]
pub(crate) struct UblkFrontend {
    server: UblkServer,
    device: Box<dyn Hand>,
    /// A device that a dead engine has left may still be there.
    inherits: bool,
    /// What the machine has asked for.
    pub(crate) actions: Outbox<UblkAction>,
    phase: Phase,
    /// Why it could not be opened.
    failed: Option<String>,
    retry: Option<Monotonic>,
}

/// What a message of the device means to the engine's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// Nothing.
    Stay,
    /// The device is out of the way of a stop.
    Left,
}

/// Whether this host can have a ublk device, said before anything is made or started.
///
/// # Errors
/// Setup problems: no driver, too old a kernel, no right to use it, no io_uring.
pub(crate) fn check_host(uring: bool) -> anyhow::Result<()> {
    let check = || -> anyhow::Result<()> {
        ensure!(uring, "it needs io_uring, which is not in use here");
        let plan = Control::open()?.plan(Features(0))?;
        if !plan.recovers {
            tracing::warn!(
                "this kernel's ublk driver does not let this user hand a device to another server: \
                 if the engine dies, the device goes and its users get errors"
            );
        }
        Ok(())
    };
    check().context("serve a ublk device").map_err(setup)
}

impl UblkFrontend {
    /// Sets it up; no device is touched yet.
    ///
    /// # Errors
    /// Setup problems: no driver, too old a kernel, no io_uring.
    pub(crate) fn new(
        io: &Io,
        args: &UblkArgs,
        volume: VolumeInfo,
        loss_bound: Option<u32>,
    ) -> anyhow::Result<Option<UblkFrontend>> {
        let Some(number) = args.number else {
            return Ok(None);
        };
        check_host(io.backend() == Backend::Uring)?;
        let config = DeviceConfig {
            number: number.0,
            queues: args.queues,
            mark: Mark::of(volume.volume),
            params: Params::new(&volume.capabilities, false),
            // M8: users of the engine before are bound to a loss epoch, or a loss would be silent.
            takes_over: loss_bound.is_some(),
            without: Features(0),
        };
        let device = Device::new(config, io.waker()).context("start the thread of the device")?;
        Ok(Some(UblkFrontend::of(
            Box::new(device),
            volume.capabilities.capacity_bytes,
            loss_bound.is_some(),
        )))
    }

    /// `inherits`: what a dead engine has left may be taken over.
    fn of(device: Box<dyn Hand>, capacity_bytes: u64, inherits: bool) -> UblkFrontend {
        UblkFrontend {
            server: UblkServer::new(UblkConfig { capacity_bytes }),
            device,
            inherits,
            actions: Outbox::default(),
            phase: Phase::Closed,
            failed: None,
            retry: None,
        }
    }

    /// An event for its machine.
    pub(crate) fn tell(&mut self, now: Monotonic, event: UblkEvent, data: &mut Arena) {
        self.server.step(now, event, data, &mut self.actions.fill);
    }

    /// An event that all frontends know.
    pub(crate) fn step(&mut self, now: Monotonic, event: FrontendEvent<'_>, data: &mut Arena) {
        // It has no connections, and the end of service comes by other ways.
        if let FrontendEvent::Complete(completion) = event {
            self.tell(now, UblkEvent::Complete(completion), data);
        }
    }

    /// The end of a batch of events.
    pub(crate) fn settle(&mut self, now: Monotonic, data: &mut Arena) {
        self.server.settle(now, data, &mut self.actions.fill);
    }

    /// When it wants to settle at the latest.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        [self.server.deadline(), self.retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// The volume's mode, now and whenever it changes or time passes: opens the device when it can
    /// be served. False when nothing but a new process helps.
    pub(crate) fn look(&mut self, now: Monotonic, mode: Mode) -> bool {
        if self.phase != Phase::Closed || self.retry.is_some_and(|at| now < at) {
            return true;
        }
        if self.server.is_attached() {
            return false;
        }
        if matches!(mode, Mode::Healthy | Mode::Degraded) {
            self.open();
        } else if mode == Mode::Waiting(Waiting::LossAccepted) && self.inherits {
            self.retry = None;
            self.phase = Phase::Opening;
            self.device.take_over();
        }
        true
    }

    fn open(&mut self) {
        self.retry = None;
        self.phase = Phase::Opening;
        self.device.open();
    }

    /// The operator is about to accept a loss: nothing that was asked for before is done after it.
    pub(crate) fn accept_loss(&mut self, now: Monotonic, data: &mut Arena) {
        self.tell(now, UblkEvent::LossAccepted, data);
    }

    /// Opens the device again after a failure, without waiting. False when it is not closed.
    pub(crate) fn open_now(&mut self) -> bool {
        let closed = self.phase == Phase::Closed && !self.server.is_attached();
        if closed {
            self.open();
        }
        closed
    }

    /// The process is asked to stop. True when the device must go first: [`Turn::Left`] tells when
    /// it has.
    pub(crate) fn begin_stop(&mut self, io: &mut Io, supervisor: Supervisor) -> bool {
        let held = matches!(self.phase, Phase::Opening | Phase::Live { .. });
        if !held {
            self.phase = Phase::Over;
            return false;
        }
        if supervisor.is_gone() {
            tracing::warn!("the supervisor has died: the device is left to the next engine");
            self.leave(io);
            return false;
        }
        self.phase = Phase::Leaving;
        self.device.stop();
        true
    }

    /// Leaves the device to the next engine: nothing fails from now on.
    pub(crate) fn leave(&mut self, io: &mut Io) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            let now = io.now();
            self.tell(now, UblkEvent::Freeze, io.arena());
        }
    }

    /// The volume is somebody else's: the device goes, whoever uses it.
    pub(crate) fn drop_device(&mut self, io: &mut Io) {
        if self.phase == Phase::Over {
            return;
        }
        let now = io.now();
        self.tell(now, UblkEvent::Fail, io.arena());
        self.phase = Phase::Leaving;
        self.device.remove();
    }

    /// True while the device is on its way out.
    pub(crate) fn is_leaving(&self) -> bool {
        self.phase == Phase::Leaving
    }

    /// News of the device's thread.
    pub(crate) fn news(&mut self, io: &mut Io, news: News, supervisor: Supervisor) -> Turn {
        let now = io.now();
        match news {
            News::Opened(opened) => {
                let (queues, depth) = (opened.device.queues(), opened.device.depth());
                match io.ublk_attach(opened.device) {
                    Ok(()) => self.tell(now, UblkEvent::Attached { queues, depth }, io.arena()),
                    Err(error) => tracing::error!(%error, "ublk"),
                }
            }
            News::Live { number, recovered } => {
                tracing::info!(number, recovered, "/dev/ublkb{number} is served");
                self.failed = None;
                self.inherits = false;
                if self.phase == Phase::Opening {
                    self.phase = Phase::Live { number, recovered };
                    supervisor.tell(&Word::Device(number));
                }
            }
            News::Failed { error, .. } => {
                tracing::error!(%error, "the ublk device cannot be opened");
                self.failed = Some(error.to_string());
                if self.phase == Phase::Opening {
                    self.phase = Phase::Closed;
                    self.retry = Some(now.after(UBLK_RETRY));
                }
            }
            News::Nothing => {
                self.inherits = false;
                if self.phase == Phase::Opening {
                    self.phase = Phase::Closed;
                }
            }
            News::Gone if self.phase == Phase::Leaving => {
                tracing::info!("the ublk device is removed");
                self.phase = Phase::Over;
                return Turn::Left;
            }
            News::Kept { number, why } if self.phase == Phase::Leaving => {
                tracing::warn!(
                    "ublk device {number} stays ({why}): the next engine takes it over, `trilith \
                     ublk delete {number}` removes it"
                );
                self.leave(io);
                return Turn::Left;
            }
            News::Gone | News::Kept { .. } => {}
        }
        Turn::Stay
    }

    /// Counters of the machine.
    pub(crate) fn status(&self) -> UblkStatus {
        self.server.status()
    }

    /// The device's node, once there is one.
    pub(crate) fn node(&self) -> Option<String> {
        match self.phase {
            Phase::Live { number, .. } => Some(format!("/dev/ublkb{number}")),
            _ => None,
        }
    }

    /// What the device is doing, for people.
    pub(crate) fn state(&self) -> String {
        match (self.phase, &self.failed) {
            (Phase::Live { recovered, .. }, _) if recovered => "live, taken over".to_owned(),
            (Phase::Live { .. }, _) => "live".to_owned(),
            (Phase::Leaving, _) => "being removed".to_owned(),
            (Phase::Over, _) => "left".to_owned(),
            (_, Some(why)) => format!("failed: {why}"),
            (Phase::Opening, None) => "being opened".to_owned(),
            (Phase::Closed, None) => "waits for the volume".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
