//! A device's life: made or taken over, live, removed or left to the next server. The commands
//! block, and some need the queues served meanwhile, so a thread carries them out and tells the loop.
//!
//! ```text
//!   open:  none of ours, or dead   add, parameters, node, [Opened] start .... [Live]
//!          quiesced                recover, node,         [Opened] go on .... [Live, recovered]
//!          live                    its server is dying: wait
//!   take over: as open, but none is made .................................... [Nothing]
//!   stop:  not in use              write back, stop, delete ................. [Gone]
//!          mounted, mapped         nothing ................................... [Kept]
//!   remove: ours or a dead server's  stop, delete ........................... [Gone]
//! ```

use crate::abi::{ANY_DEVICE, DeviceInfo, State};
use crate::control::{Control, ControlError, is_recoverable};
use crate::features::{Features, Plan};
use crate::limits::{
    NODE_WAIT_MAX, ORDERS_MAX, QUEUES_MAX, RECOVERY_WAIT_MAX, RETRY_PAUSE, SLOTS_MAX,
};
use crate::mark::Mark;
use crate::params::Params;
use core::time::Duration;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use trilith_runtime::{UblkDevice, UblkShape, Waker, now};

/// `BLKFLSBUF`: write back a block device and the file system on it.
const BLKFLSBUF: libc::Ioctl = 0x1261;

/// Which number a device shall have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Number {
    /// The volume's device if there is one, else the lowest that is free.
    Auto,
    /// This one.
    Fixed(u32),
}

/// What a device shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// Its number.
    pub number: Number,
    /// Queues of a new device, 1 to [`QUEUES_MAX`]. The kernel takes no more than there are
    /// processors.
    pub queues: u16,
    /// The mark of its volume.
    pub mark: Mark,
    /// What it says of itself.
    pub params: Params,
    /// A device that another server has left may be taken over. False: whoever uses the volume is
    /// known to be fresh, which the users of such a device are not.
    pub takes_over: bool,
    /// Features of the driver that are not to be used: none, but to compare.
    pub without: Features,
}

/// A device that is open and waits to be fetched.
#[derive(Debug)]
pub struct Opened {
    /// For the loop.
    pub device: UblkDevice,
    /// It has been taken over from a dead server.
    pub recovered: bool,
}

/// What the thread tells the loop, as a message.
#[derive(Debug)]
pub enum News {
    /// Attach it and fetch its slots: starting it waits for that.
    Opened(Opened),
    /// The block device is there.
    Live {
        /// Its number.
        number: u32,
        /// It has been taken over from a dead server.
        recovered: bool,
    },
    /// Opening failed; no device is left but one to be taken over later.
    Failed {
        /// Why.
        error: ControlError,
        /// The loop has been told to attach it, and the kernel keeps its slots.
        attached: bool,
    },
    /// No server has left a device that could be taken over.
    Nothing,
    /// Stopped and removed.
    Gone,
    /// Not stopped: it stays for the next server.
    Kept {
        /// Its number.
        number: u32,
        /// Why.
        why: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// `make`: a new one if there is none to be taken over.
    Open { make: bool },
    /// `kindly`: write back first, and not while it is in use.
    Stop { kindly: bool },
}

/// The device of a volume. Dropping it leaves the device as it is.
#[derive(Debug)]
pub struct Device {
    orders: Sender<Order>,
}

impl Device {
    /// Starts the thread. Nothing happens to any device yet.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn new(config: DeviceConfig, waker: Waker) -> io::Result<Device> {
        let (orders, receiver) = bounded(ORDERS_MAX);
        let worker = Worker {
            config,
            waker,
            live: None,
        };
        std::thread::Builder::new()
            .name("trilith-ublk".to_owned())
            .spawn(move || worker.run(&receiver))?;
        Ok(Device { orders })
    }

    /// Makes the device or takes it over. [`News`] tell how it goes.
    pub fn open(&self) {
        self.order(Order::Open { make: true });
    }

    /// Takes over what a dead server has left, and makes nothing.
    pub fn take_over(&self) {
        self.order(Order::Open { make: false });
    }

    /// Writes back what the kernel holds, then removes the device, unless it is mounted or otherwise
    /// taken: then it stays for the next server (where the driver can do that). The queues must be
    /// served until [`News::Gone`] or [`News::Kept`].
    pub fn stop(&self) {
        self.order(Order::Stop { kindly: true });
    }

    /// Removes the device, whoever uses it; one too that a dead server has left and that was not
    /// taken over. Requests in flight must be committed meanwhile.
    pub fn remove(&self) {
        self.order(Order::Stop { kindly: false });
    }

    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::error!(?order, "the thread of the ublk device does not listen");
        }
    }
}

/// A device that is ours and live.
#[derive(Clone, Copy, Debug)]
struct Live {
    number: u32,
    recovers: bool,
}

struct Worker {
    config: DeviceConfig,
    waker: Waker,
    live: Option<Live>,
}

type Result<T> = core::result::Result<T, ControlError>;

/// What to do about the device of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Course {
    /// Make one of this number, after deleting a dead one.
    Add { number: u32, dead: Option<u32> },
    /// Take this one over.
    Recover(DeviceInfo),
    /// A server is there, dying or not.
    Wait(DeviceInfo),
}

/// Decides by all devices there are.
fn course(config: &DeviceConfig, devices: &[DeviceInfo]) -> Result<Course> {
    let mark = |device: &DeviceInfo| Mark::read(device.own);
    let ours = devices
        .iter()
        .filter(|device| mark(device) == Some(config.mark));
    let ours = ours.max_by_key(|device| device.state != State::Dead);
    if let Number::Fixed(number) = config.number {
        let there = devices.iter().find(|device| device.number == number);
        if let Some(other) = there.filter(|device| mark(device) != Some(config.mark)) {
            return Err(ControlError::Device(format!(
                "ublk device {number} is somebody else's (process {})",
                other.server
            )));
        }
        if let Some(own) = ours.filter(|own| own.number != number && own.state != State::Dead) {
            let own = own.number;
            return Err(ControlError::Device(format!(
                "this volume's ublk device is {own}, not {number}: take it over with --ublk {own}, \
                 or remove it with `trilith ublk delete {own}`"
            )));
        }
    }
    let number = match config.number {
        Number::Auto => ANY_DEVICE,
        Number::Fixed(number) => number,
    };
    Ok(match ours {
        None => Course::Add { number, dead: None },
        Some(own) if is_recoverable(own.state) && !config.takes_over => {
            return Err(ControlError::Device(format!(
                "ublk device {} has users of an earlier server, and it was said that there are none",
                own.number
            )));
        }
        Some(own) if is_recoverable(own.state) => Course::Recover(*own),
        Some(own) if own.state == State::Dead => Course::Add {
            number,
            dead: Some(own.number),
        },
        Some(own) => Course::Wait(*own),
    })
}

/// The device of the volume that a dead server has left.
fn left_behind(config: &DeviceConfig, devices: &[DeviceInfo]) -> Option<u32> {
    // One that was never started has no users, and its server may be about to start it.
    let is_left = |device: &&DeviceInfo| {
        is_recoverable(device.state) && Mark::read(device.own) == Some(config.mark)
    };
    devices.iter().find(is_left).map(|device| device.number)
}

/// Whether this version can serve a device that an older or newer one has made.
fn check_shape(info: &DeviceInfo, capacity_bytes: u64, params: &Params) -> Result<()> {
    let slots = usize::from(info.queues) * usize::from(info.depth);
    let problem = if !(1..=SLOTS_MAX).contains(&slots) {
        format!("{} queues of {}", info.queues, info.depth)
    } else if info.request_bytes_max > params.request_bytes_max {
        format!("requests of {} bytes", info.request_bytes_max)
    } else if capacity_bytes != params.capacity_bytes {
        format!(
            "{capacity_bytes} bytes, where the volume has {}",
            params.capacity_bytes
        )
    } else {
        return Ok(());
    };
    Err(ControlError::Device(format!(
        "ublk device {} cannot be taken over: it has {problem}",
        info.number
    )))
}

/// Lets time pass: the kernel gives no event for what is waited for here.
fn pause(span: Duration) {
    if let Ok(span) = rustix::time::Timespec::try_from(span) {
        // Cut short by a signal, it is only a shorter pause.
        drop(rustix::thread::nanosleep(&span));
    }
}

/// Tries again while `again` says so of the error, at most for `span`.
fn patiently<T>(
    span: Duration,
    again: impl Fn(&ControlError) -> bool,
    mut act: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = now().after(span);
    loop {
        match act() {
            Err(error) if again(&error) && now() < end => pause(RETRY_PAUSE),
            done => return done,
        }
    }
}

fn is_busy(error: &ControlError) -> bool {
    error.errno() == Some(libc::EBUSY)
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Open { make } => self.open(make),
                Order::Stop { kindly } => self.stop(kindly),
            }
        }
    }

    /// Tells the loop. It may have its hands full for a while, but news are never lost.
    fn tell(&self, news: News) {
        let mut message: trilith_runtime::Message = Box::new(news);
        loop {
            match self.waker.send(message) {
                Ok(()) => return,
                Err(trilith_runtime::WakeError::Full(back)) => message = back,
                Err(trilith_runtime::WakeError::Gone(_)) => return,
            }
            pause(RETRY_PAUSE);
        }
    }

    fn open(&mut self, make: bool) {
        let mut attached = false;
        match self.try_open(make, &mut attached) {
            Ok(None) => self.tell(News::Nothing),
            Ok(Some((live, recovered))) => {
                self.live = Some(live);
                self.tell(News::Live {
                    number: live.number,
                    recovered,
                });
            }
            Err(error) => self.tell(News::Failed { error, attached }),
        }
    }

    /// `None`: nothing is there to be taken over, and nothing shall be made.
    fn try_open(&mut self, make: bool, attached: &mut bool) -> Result<Option<(Live, bool)>> {
        let mut control = Control::open()?;
        let plan = control.plan(self.config.without)?;
        let end = now().after(RECOVERY_WAIT_MAX);
        loop {
            match course(&self.config, &control.list()?)? {
                Course::Add { .. } if !make => return Ok(None),
                Course::Add { number, dead } => {
                    if let Some(dead) = dead {
                        control.delete(dead)?;
                    }
                    return self.add(&mut control, plan, number, attached).map(Some);
                }
                Course::Recover(info) => {
                    return self.recover(&mut control, &info, attached).map(Some);
                }
                Course::Wait(_) if now() < end => pause(RETRY_PAUSE),
                Course::Wait(info) => {
                    return Err(ControlError::Device(format!(
                        "ublk device {} of this volume is served by process {}",
                        info.number, info.server
                    )));
                }
            }
        }
    }

    fn add(
        &mut self,
        control: &mut Control,
        plan: Plan,
        number: u32,
        attached: &mut bool,
    ) -> Result<(Live, bool)> {
        let longest = self.config.params.request_bytes_max;
        let params = Params {
            request_bytes_max: plan.request_bytes_max(longest),
            ..self.config.params
        };
        let wanted = DeviceInfo {
            number,
            queues: self.config.queues.clamp(1, QUEUES_MAX),
            depth: plan.depth(),
            state: State::Dead,
            request_bytes_max: params.request_bytes_max,
            server: -1,
            features: plan.features.0,
            own: self.config.mark.number(),
            owner: (0, 0),
        };
        let info = control.add(wanted)?;
        let number = info.number;
        let mut begin = || {
            // The node of an ordinary user's device has to be given to the user first.
            patiently(NODE_WAIT_MAX, is_not_there, || {
                control.set_params(number, params)
            })?;
            let device = open_node(&info)?;
            *attached = true;
            self.tell(News::Opened(Opened {
                device,
                recovered: false,
            }));
            control.start(number)
        };
        let begun = begin();
        if begun.is_err() {
            // The stop ends what has been fetched, so that the loop lets go.
            for undone in [control.stop(number), control.delete(number)] {
                if let Err(error) = undone {
                    tracing::debug!(%error, "after a device that could not be started");
                }
            }
        }
        let recovers = plan.recovers;
        let begun = begun.map_err(|error| match error.errno() {
            Some(libc::EACCES) => ControlError::NodeNotOurs(number),
            _ => error,
        });
        begun.map(|()| (Live { number, recovers }, false))
    }

    fn recover(
        &mut self,
        control: &mut Control,
        info: &DeviceInfo,
        attached: &mut bool,
    ) -> Result<(Live, bool)> {
        let number = info.number;
        let capacity = control.capacity_bytes(number)?;
        check_shape(info, capacity, &self.config.params)?;
        let begun = patiently(RECOVERY_WAIT_MAX, is_busy, || {
            control.start_recovery(number)
        });
        match begun {
            // A recovery that was begun by a server which died in it needs no second beginning.
            Err(error) if error.errno() == Some(libc::EINVAL) => {
                tracing::debug!(number, "a recovery is under way already");
            }
            begun => begun?,
        }
        let device = open_node(info)?;
        *attached = true;
        self.tell(News::Opened(Opened {
            device,
            recovered: true,
        }));
        control.end_recovery(number)?;
        let recovers = true;
        Ok((Live { number, recovers }, true))
    }

    fn stop(&mut self, kindly: bool) {
        let Some(live) = self.live else {
            if !kindly && let Err(error) = self.remove_left() {
                tracing::error!(%error, "what a dead server has left");
            }
            return self.tell(News::Gone);
        };
        match self.try_stop(live, kindly) {
            Ok(None) => {
                self.live = None;
                self.tell(News::Gone);
            }
            Ok(Some(why)) => self.tell(News::Kept {
                number: live.number,
                why,
            }),
            Err(error) => self.tell(News::Kept {
                number: live.number,
                why: error.to_string(),
            }),
        }
    }

    /// Removes what a dead server has left; whoever uses it gets errors.
    fn remove_left(&self) -> Result<()> {
        let mut control = Control::open()?;
        if let Some(number) = left_behind(&self.config, &control.list()?) {
            tracing::info!(number, "removing the ublk device of a dead server");
            control.stop(number)?;
            control.delete(number)?;
        }
        Ok(())
    }

    /// Says why not, when it is not stopped.
    fn try_stop(&self, live: Live, kindly: bool) -> Result<Option<String>> {
        let Live { number, recovers } = live;
        if kindly {
            match claim(number) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && recovers => {
                    return Ok(Some("it is in use".to_owned()));
                }
                claimed => {
                    if let Err(error) = claimed.and_then(|node| write_back(&node)) {
                        tracing::warn!(number, %error, "cannot write the device back");
                    }
                }
            }
        }
        let mut control = Control::open()?;
        control.stop(number)?;
        control.delete(number)?;
        Ok(None)
    }
}

/// Opens the character device; its node may take a moment to appear, or to be free.
fn open_node(info: &DeviceInfo) -> Result<UblkDevice> {
    let features = Features(info.features);
    let shape = UblkShape {
        queues: info.queues,
        depth: info.depth,
        request_bytes_max: info.request_bytes_max,
        user_copy: features.contains(Features::USER_COPY),
        batch: features.contains(Features::BATCH_IO),
    };
    let retry = |error: &ControlError| is_not_there(error) || is_busy(error);
    patiently(NODE_WAIT_MAX, retry, || {
        UblkDevice::open(info.number, shape)
            .map_err(|error| ControlError::kernel(error.what, error.source))
    })
}

/// A node is not there yet, or not ours yet.
fn is_not_there(error: &ControlError) -> bool {
    matches!(
        error.errno(),
        Some(libc::ENOENT | libc::ENXIO | libc::EACCES)
    )
}

/// Opens a block device for this process alone. `EBUSY` when somebody else has it so: mounted,
/// mapped, swap.
fn claim(number: u32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(format!("/dev/ublkb{number}"))
}

/// Writes back what the kernel holds of a block device.
fn write_back(node: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the request takes no argument in memory.
    let result = unsafe { libc::ioctl(node.as_raw_fd(), BLKFLSBUF, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    node.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_block::{Capabilities, Uuid};

    fn config(number: Number) -> DeviceConfig {
        let volume = Capabilities {
            capacity_bytes: 1 << 30,
            block_bytes: 4096,
            transfer_bytes_max: 1 << 20,
            optimal_bytes: 1 << 20,
        };
        DeviceConfig {
            number,
            queues: 1,
            mark: Mark::of(Uuid([7; 16])),
            params: Params::new(&volume, false),
            takes_over: true,
            without: Features(0),
        }
    }

    fn device(number: u32, state: State, own: u64) -> DeviceInfo {
        DeviceInfo {
            number,
            queues: 1,
            depth: 128,
            state,
            request_bytes_max: 1 << 20,
            server: 42,
            features: 0,
            own,
            owner: (0, 0),
        }
    }

    #[test]
    fn course_follows_the_state_of_our_own_device() {
        let auto = config(Number::Auto);
        let own = auto.mark.number();
        let others = device(0, State::Live, 0);
        let add = Course::Add {
            number: ANY_DEVICE,
            dead: None,
        };
        assert_eq!(course(&auto, &[]).unwrap(), add);
        assert_eq!(course(&auto, &[others]).unwrap(), add);
        for state in [State::Quiesced, State::FailIo] {
            let ours = device(3, state, own);
            assert_eq!(
                course(&auto, &[others, ours]).unwrap(),
                Course::Recover(ours)
            );
        }
        let dead = device(3, State::Dead, own);
        let replace = Course::Add {
            number: ANY_DEVICE,
            dead: Some(3),
        };
        assert_eq!(course(&auto, &[others, dead]).unwrap(), replace);
        let live = device(4, State::Live, own);
        assert_eq!(course(&auto, &[dead, live]).unwrap(), Course::Wait(live));
    }

    #[test]
    fn device_of_somebody_else_is_never_taken() {
        let fixed = config(Number::Fixed(0));
        for (state, own) in [
            (State::Live, 0),
            (State::Quiesced, 0),
            (State::Quiesced, Mark::of(Uuid([8; 16])).number()),
        ] {
            let error = course(&fixed, &[device(0, state, own)]).unwrap_err();
            assert!(error.to_string().contains("somebody else's"), "{error}");
        }
        let add = Course::Add {
            number: 0,
            dead: None,
        };
        assert_eq!(
            course(&fixed, &[device(1, State::Live, 0)]).unwrap(),
            add,
            "another number is free"
        );
    }

    #[test]
    fn volume_with_a_waiting_device_does_not_get_a_second_one() {
        let fixed = config(Number::Fixed(5));
        let ours = device(2, State::Quiesced, fixed.mark.number());
        let text = course(&fixed, &[ours]).unwrap_err().to_string();
        assert!(text.contains("--ublk 2"), "{text}");
        let dead = device(2, State::Dead, fixed.mark.number());
        let replace = Course::Add {
            number: 5,
            dead: Some(2),
        };
        assert_eq!(course(&fixed, &[dead]).unwrap(), replace);
    }

    #[test]
    fn device_with_users_is_not_taken_over_where_users_are_said_to_be_fresh() {
        let fresh = DeviceConfig {
            takes_over: false,
            ..config(Number::Auto)
        };
        let own = fresh.mark.number();
        assert!(course(&fresh, &[device(3, State::Quiesced, own)]).is_err());
        assert!(course(&fresh, &[device(3, State::Dead, own)]).is_ok());
        assert!(course(&fresh, &[]).is_ok());
    }

    #[test]
    fn only_what_a_dead_server_of_the_volume_has_left_is_removed_unopened() {
        let auto = config(Number::Auto);
        let own = auto.mark.number();
        let other = Mark::of(Uuid([8; 16])).number();
        let live = device(1, State::Live, own);
        let foreign = [device(2, State::Quiesced, other), device(3, State::Dead, 0)];
        assert_eq!(left_behind(&auto, &[]), None);
        let fresh = device(4, State::Dead, own);
        let others = [live, foreign[0], foreign[1], fresh];
        assert_eq!(left_behind(&auto, &others), None);
        for state in [State::Quiesced, State::FailIo] {
            let ours = device(5, state, own);
            assert_eq!(left_behind(&auto, &[foreign[0], ours]), Some(5));
        }
    }

    #[test]
    fn device_of_another_shape_is_not_taken_over() {
        let params = config(Number::Auto).params;
        let fits = device(0, State::Quiesced, 0);
        assert!(check_shape(&fits, 1 << 30, &params).is_ok());
        let long = DeviceInfo {
            request_bytes_max: 2 << 20,
            ..fits
        };
        let deep = DeviceInfo {
            queues: 64,
            depth: 4096,
            ..fits
        };
        let none = DeviceInfo { queues: 0, ..fits };
        for wrong in [long, deep, none] {
            assert!(check_shape(&wrong, 1 << 30, &params).is_err(), "{wrong:?}");
        }
        assert!(check_shape(&fits, 1 << 29, &params).is_err());
    }
}
