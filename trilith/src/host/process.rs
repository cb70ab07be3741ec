//! What replica and engine processes have in common: the loop, signals, the supervisor's pipe.

use crate::cli::ProcessArgs;
use crate::control::{Command, News};
use crate::exit::setup;
use crate::limits::{LINE_BYTES_MAX, LISTEN_RETRY, LISTEN_WAIT_MAX};
use anyhow::Context;
use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock};
use rustix::process::{
    Pid, Resource, Signal as Death, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use trilith_block::Uuid;
use trilith_runtime::limits::OPEN_FILES_MAX;
use trilith_runtime::{Address, ArenaConfig, Io, ListenerId, Loop, LoopConfig, Signal, Waker};

/// A process of a volume, set up but for its machines.
#[derive(Debug)]
pub(crate) struct Process {
    /// The loop.
    pub(crate) turns: Loop,
    /// Where the admin endpoint listens.
    pub(crate) admin: Vec<ListenerId>,
    /// The supervisor's ear.
    pub(crate) supervisor: Supervisor,
}

/// Tells the supervisor news, if there is one. Never blocks: news that finds the pipe full is lost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Supervisor {
    /// Its process, if there is one.
    pid: Option<u32>,
}

impl Supervisor {
    /// True when there was one and it has died: then nobody has asked for what follows from it.
    pub(crate) fn is_gone(self) -> bool {
        self.pid.is_some() && self.pid != parent()
    }

    /// One with this number.
    #[cfg(test)]
    pub(crate) fn of(pid: u32) -> Supervisor {
        Supervisor { pid: Some(pid) }
    }

    /// True when there is one.
    pub(crate) fn is_there(self) -> bool {
        self.pid.is_some()
    }

    /// Tells it.
    pub(crate) fn tell(self, news: &News) {
        if self.pid.is_none() {
            return;
        }
        let mut out = std::io::stdout().lock();
        if let Err(error) = out
            .write_all(news.to_line().as_bytes())
            .and_then(|()| out.flush())
        {
            tracing::warn!(%error, "cannot tell the supervisor");
        }
    }
}

/// Sets a process up: dies with its supervisor, catches signals, listens for admins.
///
/// # Errors
/// When an address is in use or the kernel refuses something.
pub(crate) fn start(args: &ProcessArgs) -> anyhow::Result<Process> {
    start_with(args, false)
}

/// As [`start`], with as much memory again for a second machine ([`Share::Second`]) if there is one.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_with(args: &ProcessArgs, second: bool) -> anyhow::Result<Process> {
    if let Some(pid) = args.supervisor {
        follow(pid)?;
    }
    raise_file_limit();
    let mut arena = ArenaConfig::of_process();
    if let Some(bytes) = args.memory {
        arena.budget_bytes = bytes;
    }
    let apart_bytes = if second { arena.budget_bytes } else { 0 };
    arena.budget_bytes += apart_bytes;
    let config = LoopConfig {
        backend: args.backend.into(),
        arena,
        spin: args.spin,
    };
    let mut turns = Loop::new(config).map_err(setup)?;
    let io = turns.io();
    io.arena().set_apart(apart_bytes);
    io.catch_signals(&[Signal::Terminate, Signal::Interrupt, Signal::Hangup])
        .map_err(setup)?;
    let mut admin = Vec::new();
    for address in &args.admin {
        admin.push(listen(io, address, true)?);
    }
    if args.supervisor.is_some() {
        listen_to_supervisor(io.waker())?;
    }
    let supervisor = Supervisor {
        pid: args.supervisor,
    };
    Ok(Process {
        turns,
        admin,
        supervisor,
    })
}

/// As many open files as the loop may want, if the hard limit allows. With fewer it works too, but
/// new clients wait when there are none left.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(OPEN_FILES_MAX, |most| most.min(OPEN_FILES_MAX));
    if limit.current.is_none_or(|now| now >= wanted) {
        return;
    }
    limit.current = Some(wanted);
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Listens; `private`: TCP only on loopback, since nobody proves who they are there. Waits a little
/// for a predecessor that was killed and still holds the address.
///
/// # Errors
/// When the address is in use or not allowed.
pub(crate) fn listen(io: &mut Io, address: &Address, private: bool) -> anyhow::Result<ListenerId> {
    let exposed = match address {
        Address::Tcp(socket) => private && !socket.ip().is_loopback(),
        Address::Unix(_) => false,
    };
    if exposed {
        let why = anyhow::anyhow!("expected a unix socket or a loopback address, found {address}");
        return Err(setup(why.context("listen for admins")));
    }
    let tries = LISTEN_WAIT_MAX.as_millis() / LISTEN_RETRY.as_millis();
    for _ in 1..tries {
        match io.listen(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => pause(LISTEN_RETRY),
            done => return done.map_err(setup),
        }
    }
    io.listen(address).map_err(setup)
}

/// Lets time pass before the loop runs: the kernel gives no event when an address comes free.
pub(crate) fn pause(span: std::time::Duration) {
    if let Ok(span) = rustix::time::Timespec::try_from(span) {
        // Cut short by a signal, it is only a shorter pause.
        drop(rustix::thread::nanosleep(&span));
    }
}

/// The parent process.
fn parent() -> Option<u32> {
    let parent = getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get());
    parent.and_then(|parent| u32::try_from(parent).ok())
}

/// Tells the kernel that this process, its threads and its children work for a block device of this
/// host: an allocation of theirs must not wait for that device. To be called before threads start.
pub(crate) fn become_io_flusher() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::warn!(
            %error,
            "cannot become an I/O flusher (CAP_SYS_RESOURCE): short of memory, the device may hang"
        );
    }
}

/// Ends with the supervisor: SIGTERM when it dies, also when it hangs in a way that leaves the
/// pipe open.
fn follow(pid: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Death::TERM)).context("follow the supervisor")?;
    // It may have died before the line above; then nobody would ever send the signal.
    if parent() != Some(pid) {
        anyhow::bail!("follow the supervisor: process {pid} is gone");
    }
    // What the supervisor does not read must not stop this process.
    for fd in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let flags = fcntl_getfl(fd).context("make output non-blocking")?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).context("make output non-blocking")?;
    }
    Ok(())
}

/// A thread that reads the supervisor's commands and hands them to the loop. It ends with the pipe.
fn listen_to_supervisor(waker: Waker) -> anyhow::Result<()> {
    let read = move || {
        let mut input = BufReader::new(std::io::stdin());
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            match input.by_ref().take(limit).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let Some(command) = Command::parse(&String::from_utf8_lossy(&line)) else {
                continue;
            };
            if let Err(error) = waker.send(Box::new(command)) {
                tracing::warn!(?error, "a command of the supervisor is lost");
            }
        }
        if let Err(error) = waker.send(Box::new(Command::Stop)) {
            tracing::debug!(?error, "the loop has ended before the supervisor");
        }
    };
    std::thread::Builder::new()
        .name("trilith-control".to_owned())
        .spawn(read)
        .map(|_| ())
        .context("start the control thread")
}

/// Takes an exclusive lock on a file, made when missing, that lasts as long as the result.
///
/// # Errors
/// When somebody else holds it (then `taken` is in the message), or it cannot be opened.
pub(crate) fn lock_file(path: &Path, taken: &str) -> anyhow::Result<File> {
    let what = || format!("lock {}", path.display());
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(what)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(anyhow::anyhow!("{taken}")).with_context(what),
        Err(error) => Err(error).with_context(what),
    }
}

/// A new random identity.
///
/// # Errors
/// When the kernel has no randomness.
pub(crate) fn new_uuid() -> anyhow::Result<Uuid> {
    let mut bytes = [0; 16];
    trilith_runtime::random_bytes(&mut bytes)?;
    // RFC 9562 5.4: version 4, variant 10.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Uuid(bytes))
}

/// Random bytes for a machine's generator.
///
/// # Errors
/// When the kernel has no randomness.
pub(crate) fn entropy() -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    trilith_runtime::random_bytes(&mut bytes)?;
    Ok(bytes)
}

/// The volume's secret.
///
/// # Errors
/// When the file is missing, readable by others, or of another length.
pub(crate) fn secret(path: &Path) -> anyhow::Result<trilith_wire::auth::Secret> {
    let bytes = trilith_runtime::read_secret(path)?;
    let found = bytes.len();
    bytes.try_into().map_err(|_| {
        anyhow::anyhow!(
            "read secret {}: expected {} bytes, found {found}",
            path.display(),
            crate::limits::SECRET_BYTES
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock_file(&path, "somebody is here").unwrap();
        let error = lock_file(&path, "somebody is here").unwrap_err();
        assert!(
            format!("{error:#}").ends_with("lock: somebody is here"),
            "{error:#}"
        );
        drop(held);
        assert!(lock_file(&path, "").is_ok());
    }

    #[test]
    fn identities_are_new_and_version_4() {
        let (one, two) = (new_uuid().unwrap(), new_uuid().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.to_string().as_bytes()[14], b'4');
    }

    #[test]
    fn secret_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        trilith_runtime::write_secret(&path, &[7; 32]).unwrap();
        assert_eq!(secret(&path).unwrap(), [7; 32]);
        trilith_runtime::write_secret(&path, &[7; 31]).unwrap();
        assert!(
            secret(&path)
                .unwrap_err()
                .to_string()
                .contains("expected 32 bytes, found 31")
        );
    }
}
