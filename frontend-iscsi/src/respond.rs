//! What goes back to the initiator for a task: data and status, with residuals (RFC 7143 11.4.5).

use crate::bytes::{len32, low32, put16};
use crate::pdu::{Bhs, NO_TAG, flag, opcode};
use crate::scsi::copy::Span;
use crate::scsi::plan::Work;
use crate::scsi::sense::{SENSE_BYTES_MAX, Sense, status};
use crate::scsi::status as lba;
use crate::target::{IscsiTarget, Out};
use crate::task::{Failure, Stage, Task};
use trilith_block::{BufSlice, Buffers};

/// Flags and count of a residual.
fn residual(task: &Task) -> (u8, u32) {
    let expected = u64::from(task.expected);
    let moved = if task.failure.is_some() {
        if task.reads { task.sent } else { task.received }
    } else {
        task.required
    };
    if moved > expected {
        (flag::OVERFLOW, low32(moved - expected))
    } else if moved < expected {
        (flag::UNDERFLOW, low32(expected - moved))
    } else {
        (0, 0)
    }
}

impl IscsiTarget {
    /// Sends the data that is next in order, the status with the last of it.
    pub(crate) fn send_ready(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        loop {
            let task = &self.tasks[t];
            let next = task
                .parts
                .iter()
                .position(|part| part.stage == Stage::Ready && part.at == task.sent);
            let Some(p) = next else {
                return;
            };
            if task.is_stopped() {
                return;
            }
            if let Some(buf) = task.parts[p].buf {
                self.data_in(t, buf, data, out);
            }
            self.part_over(t, p, data, out);
        }
    }

    /// Sends one part as Data-In PDUs.
    fn data_in(&mut self, t: usize, buf: BufSlice, data: &mut dyn Buffers, out: &mut Out) {
        self.status.bytes_read += u64::from(buf.len);
        let last = self.tasks[t].sent + u64::from(buf.len) == self.tasks[t].total;
        if last {
            self.leave_window(t);
        }
        let task = &mut self.tasks[t];
        let conn = &mut self.conns[task.slot];
        let mut at = 0;
        while at < buf.len {
            if task.burst_left == 0 {
                task.burst_left = conn.params.burst_bytes;
            }
            let len = (buf.len - at)
                .min(conn.params.peer_segment)
                .min(task.burst_left);
            task.burst_left -= len;
            let ends = last && at + len == buf.len;
            // RFC 7143 11.7.1: F ends a sequence, which is at most MaxBurstLength long.
            let mut flags = if ends || task.burst_left == 0 {
                flag::FINAL
            } else {
                0
            };
            let mut head = Bhs::new(opcode::DATA_IN, 0)
                .with32(16, task.itt)
                .with32(20, NO_TAG)
                .with32(36, task.data_sn)
                .with32(40, low32(task.sent));
            if ends {
                let (over, count) = residual(task);
                flags |= flag::STATUS | over;
                head = head.with_byte(3, status::GOOD).with32(44, count);
                task.answered = true;
            }
            let stamped = conn.stamp(head.with_byte(1, flags), ends);
            // Without a status the field is reserved (RFC 7143 11.7.6).
            let head = if ends { stamped } else { stamped.with32(24, 0) };
            if conn.is_talking() {
                conn.send_payload(head, buf.slice(at, len), data, out);
            }
            task.data_sn += 1;
            task.sent += u64::from(len);
            at += len;
        }
    }

    /// Answers with the bytes in `reply`, and ends the task.
    pub(crate) fn reply_data(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        self.send_reply(t, data, out);
        self.tasks[t].started = true;
        self.tasks[t].work = Work::Flush;
        self.feed(t, data, out);
    }

    fn send_reply(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        let reply = core::mem::take(&mut self.reply);
        self.leave_window(t);
        let task = &mut self.tasks[t];
        let slot = task.slot;
        task.required = reply.len() as u64;
        let room = if task.reads {
            task.expected as usize
        } else {
            0
        };
        let body = &reply[..reply.len().min(room)];
        let step = self.conns[slot].params.peer_segment as usize;
        for piece in body.chunks(step.max(1)) {
            let task = &mut self.tasks[t];
            let ends = task.sent + piece.len() as u64 == body.len() as u64;
            let mut flags = if ends { flag::FINAL } else { 0 };
            let mut head = Bhs::new(opcode::DATA_IN, 0)
                .with32(16, task.itt)
                .with32(20, NO_TAG)
                .with32(36, task.data_sn)
                .with32(40, low32(task.sent));
            if ends {
                let (over, count) = residual(task);
                flags |= flag::STATUS | over;
                head = head.with32(44, count);
                task.answered = true;
            }
            task.data_sn += 1;
            task.sent += piece.len() as u64;
            self.send(slot, head.with_byte(1, flags), ends, piece, data, out);
        }
        self.reply = reply;
    }

    /// Block status has come: makes the answer of GET LBA STATUS.
    pub(crate) fn lba_status(
        &mut self,
        t: usize,
        records: BufSlice,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let task = &self.tasks[t];
        let shift = self.disk.block_shift;
        self.reply.clear();
        lba::reply(
            data.bytes(records),
            task.base >> shift,
            task.total,
            shift,
            crate::bytes::be32(&task.cdb, 10) as usize,
            lba::descriptors(&task.cdb),
            &mut self.reply,
        );
        self.send_reply(t, data, out);
    }

    /// Sends the SCSI Response of a task that has not been answered.
    pub(crate) fn respond(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        self.leave_window(t);
        let task = &self.tasks[t];
        if task.work == Work::Copy || self.copy_failed(t) {
            self.keep_copy(t);
        }
        let task = &mut self.tasks[t];
        let slot = task.slot;
        let mut body = [0; 2 + SENSE_BYTES_MAX];
        let (code, len) = match task.failure {
            None => (status::GOOD, 0),
            Some(Failure::Status(code)) => (code, 0),
            Some(Failure::Sense(sense)) => {
                let (bytes, len) = sense.encode(self.disk.descriptor_sense);
                put16(&mut body, 0, u16::try_from(len).unwrap_or(0));
                body[2..2 + len].copy_from_slice(&bytes[..len]);
                (status::CHECK_CONDITION, 2 + len)
            }
        };
        if code != status::GOOD {
            self.status.commands_failed += 1;
        }
        let (over, count) = residual(task);
        let head = Bhs::new(opcode::RESPONSE, flag::FINAL | over)
            .with_byte(3, code)
            .with32(16, task.itt)
            .with32(36, task.data_sn.max(task.r2t_sn))
            .with32(44, count);
        task.answered = true;
        debug_assert!(len32(len) <= 64);
        self.send(slot, head, true, &body[..len], data, out);
    }

    fn copy_failed(&self, t: usize) -> bool {
        self.tasks[t].cdb[0] == 0x83
            && self.tasks[t].failure.is_some()
            && !self.tasks[t].spans.is_empty()
    }

    /// Keeps the result of EXTENDED COPY; a failure within a segment is COPY ABORTED.
    fn keep_copy(&mut self, t: usize) {
        let task = &mut self.tasks[t];
        let good = task.failure.is_none();
        if task.work == Work::Copy && !good {
            task.failure = Some(Failure::Sense(Sense::COPY_FAILED));
        }
        let done = if good {
            task.spans.len()
        } else {
            task.span.min(task.spans.len())
        };
        let spans: &[Span] = &task.spans[..done];
        let tsih = self.conns[task.slot].tsih;
        self.disk.copies.keep(tsih, task.list_id, good, spans);
    }
}
