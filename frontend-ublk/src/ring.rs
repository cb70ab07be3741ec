//! The ring for commands to `/dev/ublk-control`: long entries, one command at a time. The loop's own
//! ring has short ones, and these commands take their time.

use crate::abi;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A ring and the control device.
pub(crate) struct ControlRing {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    file: File,
}

impl core::fmt::Debug for ControlRing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ControlRing").finish_non_exhaustive()
    }
}

impl ControlRing {
    /// Opens the device and makes a ring.
    ///
    /// # Errors
    /// What the kernel says; the device is tried first.
    pub(crate) fn open(path: &str) -> io::Result<ControlRing> {
        let file = File::options().read(true).write(true).open(path)?;
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(2)?;
        Ok(ControlRing { ring, file })
    }

    /// Carries out one command and waits for it, however long it takes. `buffer` is what it reads or
    /// fills; its first `path_len` bytes are the path of a node.
    ///
    /// # Errors
    /// The command's own.
    pub(crate) fn run(
        &mut self,
        operation: u32,
        device: u32,
        data: u64,
        buffer: Option<&mut [u8]>,
        path_len: u16,
    ) -> io::Result<()> {
        let (address, len) = match buffer {
            Some(bytes) => (
                bytes.as_mut_ptr() as u64,
                u16::try_from(bytes.len()).unwrap_or(0),
            ),
            None => (0, 0),
        };
        let command = abi::control(device, address, (len, path_len), data);
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), operation)
            .cmd(command)
            .build();
        // SAFETY: the command names `buffer`, which is borrowed mutably until this function
        // returns, and it returns only once the completion is there.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel still may own the buffer: no way back.
                Err(error) => panic!("wait for a ublk command: {error}"),
            }
            if let Some(done) = self.ring.completion().next() {
                return match done.result() {
                    result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
                    _ => Ok(()),
                };
            }
        }
    }
}
