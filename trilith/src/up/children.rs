//! Child processes of `up`: started in process groups of their own (so that Ctrl-C reaches `up`
//! alone), told what to do on their standard input, heard on their output.

use crate::control::{Command as Word, News};
use crate::exit::Exit;
use crate::limits::LINE_BYTES_MAX;
use crate::output;
use crate::up::supervisor::ChildId;
use anyhow::Context;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use trilith_runtime::Waker;

/// News of a child, as a message to the loop of `up`.
#[derive(Debug)]
pub(crate) struct Heard {
    /// Who.
    pub(crate) child: ChildId,
    /// Its process, so that a dead child's last words are told from its successor's.
    pub(crate) pid: u32,
    /// What.
    pub(crate) news: News,
}

#[derive(Debug)]
struct Running {
    id: ChildId,
    process: Child,
    input: Option<ChildStdin>,
}

/// The children that run.
#[derive(Debug)]
pub(crate) struct Children {
    executable: PathBuf,
    waker: Waker,
    running: Vec<Running>,
}

impl Children {
    /// None yet. Children run the executable of this process.
    ///
    /// # Errors
    /// When the kernel does not tell which that is.
    pub(crate) fn new(waker: Waker) -> anyhow::Result<Children> {
        let executable = std::env::current_exe().context("find the executable of this process")?;
        Ok(Children {
            executable,
            waker,
            running: Vec::new(),
        })
    }

    /// Starts a child.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn start(&mut self, id: ChildId, args: &[OsString]) -> anyhow::Result<()> {
        let what = || format!("start {id}");
        let mut process = Command::new(&self.executable)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(what)?;
        let pid = process.id();
        let input = process.stdin.take();
        if let Some(input) = &input {
            // A child that hangs does not read; `up` must not hang with it.
            let flags = fcntl_getfl(input).with_context(what)?;
            fcntl_setfl(input, flags | OFlags::NONBLOCK).with_context(what)?;
        }
        if let Some(out) = process.stdout.take() {
            let waker = self.waker.clone();
            read_lines(&format!("{id} news"), out, move |line| {
                let Some(news) = News::parse(line) else {
                    return;
                };
                if let Err(error) = waker.send(Box::new(Heard {
                    child: id,
                    pid,
                    news,
                })) {
                    tracing::warn!(child = %id, ?error, "news are lost");
                }
            })?;
        }
        if let Some(err) = process.stderr.take() {
            read_lines(&format!("{id} log"), err, move |line| {
                output::error_line(&format!("{id:<10} {line}"));
            })?;
        }
        self.running.push(Running { id, process, input });
        Ok(())
    }

    /// True when `pid` is the process of `id`.
    pub(crate) fn is(&self, id: ChildId, pid: u32) -> bool {
        self.running
            .iter()
            .any(|child| child.id == id && child.process.id() == pid)
    }

    /// Tells a child something. A child that does not read misses it.
    pub(crate) fn tell(&mut self, id: ChildId, word: &Word) {
        let Some(child) = self.running.iter_mut().find(|child| child.id == id) else {
            return;
        };
        let Some(input) = &mut child.input else {
            return;
        };
        let line = word.to_line();
        if let Err(error) = input.write_all(line.as_bytes()) {
            tracing::warn!(child = %id, %error, "cannot tell {word:?}");
        }
    }

    /// Asks a child to stop: the word, and the end of its input.
    pub(crate) fn stop(&mut self, id: ChildId) {
        self.tell(id, &Word::Stop);
        if let Some(child) = self.running.iter_mut().find(|child| child.id == id) {
            child.input = None;
        }
    }

    /// SIGKILLs a child.
    pub(crate) fn kill(&mut self, id: ChildId) {
        let Some(child) = self.running.iter().find(|child| child.id == id) else {
            return;
        };
        let pid = i32::try_from(child.process.id())
            .ok()
            .and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::KILL)) {
            tracing::warn!(child = %id, %error, "cannot kill");
        }
    }

    /// Children that have ended since the last call.
    pub(crate) fn reap(&mut self, ended: &mut Vec<(ChildId, Exit)>) {
        self.running
            .retain_mut(|child| match child.process.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    let exit = Exit::of(status.code());
                    tracing::debug!(child = %child.id, %status, "child is reaped");
                    ended.push((child.id, exit));
                    false
                }
                Err(error) => {
                    tracing::error!(child = %child.id, %error, "cannot wait for child");
                    true
                }
            });
    }
}

/// Reads lines in a thread of its own until the pipe is closed.
fn read_lines(
    name: &str,
    from: impl Read + Send + 'static,
    each: impl Fn(&str) + Send + 'static,
) -> anyhow::Result<()> {
    let read = move || {
        let mut from = BufReader::new(from);
        let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(limit).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => each(String::from_utf8_lossy(&line).trim_end()),
            }
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(read)
        .map(|_| ())
        .with_context(|| format!("start thread {name}"))
}
