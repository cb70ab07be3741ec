//! SCSI commands as they come in: judged, answered at once or turned into tasks; and the data that
//! initiators send for them.

use crate::bytes::{be16, be32, byte};
use crate::conn::{Recv, Sink};
use crate::limits::{FIRST_BURST_BYTES_MAX, IMMEDIATE_COMMANDS_MAX};
use crate::pdu::{Bhs, NO_TAG, flag, opcode, reason};
use crate::scsi::access::{Access, access};
use crate::scsi::inquiry;
use crate::scsi::plan::{Job, List, Plan, Work, plan};
use crate::scsi::sense::{Sense, status};
use crate::target::{IscsiTarget, Out};
use crate::task::{Failure, Stage, Task};
use trilith_block::Buffers;

/// Task attribute ORDERED (RFC 7143 11.3.1).
const ORDERED: u8 = 2;

impl IscsiTarget {
    /// A SCSI Command PDU.
    pub(crate) fn command(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        if !self.take_cmd_sn(slot, data, out) {
            self.skip_segment(slot);
            return;
        }
        self.status.commands += 1;
        let conn = &self.conns[slot];
        let head = conn.head;
        let crowded = head.is_immediate() && conn.immediate_tasks >= IMMEDIATE_COMMANDS_MAX;
        if crowded || conn.task(head.itt()).is_some() || head.itt() == NO_TAG {
            let why = if crowded {
                reason::TOO_MANY_IMMEDIATE
            } else {
                reason::PROTOCOL
            };
            self.reject(slot, why, data, out);
            self.skip_segment(slot);
            return;
        }
        let t = self.new_task(slot, &head);
        let generation = self.tasks[t].generation;
        self.begin(t, data, out);
        let task = &self.tasks[t];
        let lives = task.active && task.generation == generation;
        if head.data_bytes() == 0 {
            return;
        }
        if !lives || task.is_stopped() || !task.work.collects() {
            self.skip_segment(slot);
            return;
        }
        self.immediate_data(slot, t, data, out);
    }

    /// A free task slot.
    pub(crate) fn take_task_slot(&mut self) -> usize {
        self.free_tasks.pop().unwrap_or_else(|| {
            self.tasks.push(Task::new());
            self.tasks.len() - 1
        })
    }

    fn new_task(&mut self, slot: usize, head: &Bhs) -> usize {
        let t = self.take_task_slot();
        self.next_seq += 1;
        let task = &mut self.tasks[t];
        task.renew(slot, self.next_seq);
        let flags = head.flags();
        task.itt = head.itt();
        task.lun = head.lun();
        task.immediate = head.is_immediate();
        task.windowed = !task.immediate;
        task.ordered = flags & 7 == ORDERED;
        task.reads = flags & flag::READ != 0;
        task.writes = flags & flag::WRITE != 0;
        task.expected = head.word20();
        task.cdb.copy_from_slice(&head.0[32..48]);
        let conn = &mut self.conns[slot];
        task.unsolicited_end = if head.is_final() {
            head.data_bytes()
        } else {
            conn.params.first_burst_bytes.min(FIRST_BURST_BYTES_MAX)
        };
        // RFC 7143 4.2.4, 13.10, 13.11: data that was not agreed on.
        let unexpected = (head.data_bytes() > 0 && !conn.params.immediate_data)
            || (task.writes && !head.is_final() && conn.params.initial_r2t)
            || head.data_bytes() > conn.params.first_burst_bytes;
        if unexpected {
            task.fail(Failure::Sense(Sense::UNEXPECTED_DATA));
        }
        conn.tasks.push((task.itt, t));
        if task.immediate {
            conn.immediate_tasks += 1;
        } else {
            conn.window_tasks += 1;
        }
        if task.ordered {
            conn.ordered_tasks += 1;
        }
        t
    }

    /// Judges a new task and starts it.
    fn begin(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        if !self.tasks[t].is_stopped() {
            self.reply.clear();
            match self.judge(t) {
                Ok(Plan::Reply) => {
                    self.reply_data(t, data, out);
                    return;
                }
                Ok(Plan::Run(job)) => self.run(t, &job),
                Ok(Plan::Sanitize { erase }) => {
                    self.tasks[t].started = true;
                    self.tasks[t].work = Work::Flush;
                    if !erase {
                        self.exit_failure_mode();
                    } else if let Err(failure) = self.start_sanitize(t, None, data) {
                        self.tasks[t].fail(failure);
                    }
                }
                // Done: an empty flush of nothing that has nothing left to do.
                Ok(_) => {
                    self.tasks[t].started = true;
                    self.tasks[t].work = Work::Flush;
                }
                Err(failure) => self.tasks[t].fail(failure),
            }
        }
        self.feed(t, data, out);
    }

    /// What becomes of a command: the checks in the order of SAM-5 5.9 and SPC-4 5.9.
    fn judge(&mut self, t: usize) -> Result<Plan, Failure> {
        if !self.serving {
            return Err(Failure::Status(status::BUSY));
        }
        let (slot, cdb, lun) = (self.tasks[t].slot, self.tasks[t].cdb, self.tasks[t].lun);
        if !self.holds_unit(lun) {
            return self.judge_empty(&cdb).map_err(Failure::Sense);
        }
        let excused = matches!(cdb[0], 0x12 | 0xa0 | 0x03);
        let conn = &mut self.conns[slot];
        if !excused && !conn.attentions.is_empty() {
            let code = conn.attentions.remove(0);
            return Err(Failure::Sense(Sense::attention(code)));
        }
        self.judge_sanitizing(&cdb)?;
        let what = access(&cdb);
        if self.is_reserved_from(slot, what) {
            return Err(Failure::Status(status::RESERVATION_CONFLICT));
        }
        let plan = plan(&self.disk, &cdb, &mut self.reply).map_err(Failure::Sense)?;
        if let Plan::Run(job) = &plan
            && (job.work.writes()
                || matches!(
                    job.work,
                    Work::Take(List::WriteSame { .. } | List::Sanitize)
                ))
            && self.disk.is_protected()
        {
            return Err(Failure::Sense(Sense::WRITE_PROTECTED));
        }
        self.judge_session(slot, &cdb, plan)
    }

    /// Plans that need to know the initiator.
    fn judge_session(&mut self, slot: usize, cdb: &[u8; 16], plan: Plan) -> Result<Plan, Failure> {
        let conn = &mut self.conns[slot];
        match plan {
            Plan::RequestSense => {
                let sense = if conn.attentions.is_empty() {
                    self.sanitizing_sense().unwrap_or(Sense::NONE)
                } else {
                    let conn = &mut self.conns[slot];
                    Sense::attention(conn.attentions.remove(0))
                };
                let (bytes, len) = sense.encode(cdb[1] & 1 != 0);
                self.reply.extend_from_slice(&bytes[..len]);
                self.reply.truncate(usize::from(cdb[4]));
                Ok(Plan::Reply)
            }
            Plan::Reserve6 => {
                let port = conn.port.clone();
                if self.disk.reservations.reserve6(&port) {
                    Ok(Plan::Good)
                } else {
                    Err(Failure::Status(status::RESERVATION_CONFLICT))
                }
            }
            Plan::Release6 => {
                let port = conn.port.clone();
                self.disk.reservations.release6(&port);
                Ok(Plan::Good)
            }
            Plan::ReserveIn => {
                let read = self.disk.reservations.read(cdb, &mut self.reply);
                read.map(|()| Plan::Reply).map_err(Failure::Sense)
            }
            Plan::CopyResults => {
                let tsih = conn.tsih;
                let status = self.disk.copies.status(tsih, cdb, &mut self.reply);
                status.map(|()| Plan::Reply).map_err(Failure::Sense)
            }
            plan => Ok(plan),
        }
    }

    /// True when a logical unit number is that of the disk (SAM-5 4.7: single level, peripheral
    /// or flat addressing).
    pub(crate) fn holds_unit(&self, lun: [u8; 8]) -> bool {
        let method = lun[0] >> 6;
        let number = be16(&lun, 0) & 0x3fff;
        method < 2 && number == u16::from(self.disk.lun) && lun[2..].iter().all(|b| *b == 0)
    }

    /// Commands to a logical unit number that holds nothing (SPC-4 5.11).
    fn judge_empty(&mut self, cdb: &[u8; 16]) -> Result<Plan, Sense> {
        match cdb[0] {
            0x12 => inquiry::inquiry(&self.disk, cdb, false, &mut self.reply)?,
            0xa0 => inquiry::report_luns(&self.disk, cdb, &mut self.reply)?,
            0x03 => {
                let (bytes, len) = Sense::NO_UNIT.encode(cdb[1] & 1 != 0);
                self.reply.extend_from_slice(&bytes[..len]);
                self.reply.truncate(usize::from(cdb[4]));
            }
            _ => return Err(Sense::NO_UNIT),
        }
        Ok(Plan::Reply)
    }

    /// True when a reservation keeps a command from this session.
    fn is_reserved_from(&mut self, slot: usize, what: Access) -> bool {
        let reservations = &self.disk.reservations;
        let conn = &mut self.conns[slot];
        if conn.standing_version != Some(reservations.version) {
            conn.standing = reservations.standing(&conn.port);
            conn.standing_version = Some(reservations.version);
        }
        reservations.conflicts(&conn.port, conn.standing, what)
    }

    /// Sets a task up for its job.
    fn run(&mut self, t: usize, job: &Job) {
        let shift = self.disk.block_shift;
        let write_through = !self.disk.write_cache;
        let task = &mut self.tasks[t];
        // A command that moves data the other way round, or none, transfers nothing.
        let agrees = if job.in_bytes > 0 {
            task.reads
        } else {
            task.writes
        };
        let expected = if agrees { task.expected } else { 0 };
        task.work = job.work;
        task.fua = job.fua || (write_through && (job.work.writes() || job.work.collects()));
        task.required = job.out_bytes.max(job.in_bytes);
        task.base = job.lba << shift;
        task.total = job.blocks << shift;
        match job.work {
            // RFC 7143 11.4.5: no more than the initiator expects is moved.
            Work::Read
            | Work::Write
            | Work::VerifyData
            | Work::OrWrite
            | Work::WriteVerify { .. } => {
                task.total = task.total.min(u64::from(expected));
                if task.total == 0 {
                    task.started = true;
                    task.work = Work::Flush;
                    task.total = 0;
                }
            }
            // All or nothing.
            Work::CompareWrite | Work::Take(List::WriteSame { .. })
                if u64::from(expected) != job.out_bytes =>
            {
                task.fail(Failure::Sense(Sense::INVALID_FIELD));
            }
            // Nothing to compare and nothing to write.
            Work::CompareWrite if job.out_bytes == 0 => {
                task.started = true;
                task.work = Work::Flush;
            }
            Work::Take(_) if expected == 0 => {
                task.fail(Failure::Sense(Sense::PARAMETER_LENGTH));
            }
            _ => {}
        }
    }

    /// The data segment of a command.
    fn immediate_data(&mut self, slot: usize, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        let task = &mut self.tasks[t];
        if task.waiting {
            self.wait_or_refuse(slot, t, data, out);
            return;
        }
        let part = &task.parts[0];
        let Some(buf) = part.buf.filter(|_| part.stage == Stage::Collect) else {
            self.skip_segment(slot);
            return;
        };
        let len = self.conns[slot].head.data_bytes().min(part.want);
        task.receiving = true;
        self.want_payload(slot, buf.slice(0, len), Sink::Data { task: t, part: 0 });
    }

    /// Data has come for a task that has no memory. Waiting would keep data of other tasks from
    /// coming, on which the memory may depend: then the command must be sent again.
    fn wait_or_refuse(&mut self, slot: usize, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        if self.conns[slot].collecting == 0 {
            self.conns[slot].recv = Recv::Wait;
            return;
        }
        self.skip_segment(slot);
        self.tasks[t].fail(Failure::Status(status::TASK_SET_FULL));
        self.end_if_over(t, data, out);
    }

    /// A connection that waits for the memory of a task looks again.
    pub(crate) fn resume(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        if self.conns[slot].recv != Recv::Wait {
            return;
        }
        let head = self.conns[slot].head;
        match self.conns[slot].task(head.itt()) {
            Some(t) if self.tasks[t].waiting => {}
            Some(t) if head.opcode() == opcode::COMMAND && !self.tasks[t].is_stopped() => {
                self.conns[slot].recv = Recv::Head;
                self.immediate_data(slot, t, data, out);
            }
            Some(_) if head.opcode() == opcode::DATA_OUT => {
                self.conns[slot].recv = Recv::Head;
                self.data_out(slot, data, out);
            }
            Some(_) | None => self.skip_segment(slot),
        }
    }

    /// A Data-Out PDU.
    pub(crate) fn data_out(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let head = self.conns[slot].head;
        let Some(t) = self.conns[slot].task(head.itt()) else {
            // Data of a task that is over: an abort, or an early error.
            self.skip_segment(slot);
            return;
        };
        let task = &mut self.tasks[t];
        if task.is_stopped() || !task.work.collects() {
            self.skip_segment(slot);
            return;
        }
        let ttt = head.word20();
        let found = task.parts.iter().position(|part| {
            part.stage == Stage::Collect && part.ttt == ttt && part.got < part.burst_end
        });
        if found.is_none() && task.waiting && ttt == NO_TAG {
            self.wait_or_refuse(slot, t, data, out);
            return;
        }
        // RFC 7143 11.7: in order, nothing twice, nothing left out.
        let fits = found.filter(|p| {
            let part = &task.parts[*p];
            part.data_sn == head.word(36)
                && part.at + u64::from(part.got) == u64::from(head.word(40))
        });
        let Some(p) = fits else {
            // More unsolicited data than the command wants is thrown away.
            if ttt != NO_TAG || found.is_some() {
                task.fail(Failure::Sense(Sense::DATA_PHASE));
            }
            self.skip_segment(slot);
            self.end_if_over(t, data, out);
            return;
        };
        let part = &mut task.parts[p];
        part.data_sn += 1;
        let len = head.data_bytes().min(part.burst_end - part.got);
        let Some(buf) = part.buf.filter(|_| len > 0) else {
            self.skip_segment(slot);
            self.data_arrived(slot, t, p, 0, data, out);
            return;
        };
        task.receiving = true;
        let slice = buf.slice(task.parts[p].got, len);
        self.want_payload(slot, slice, Sink::Data { task: t, part: p });
    }

    /// Data of an initiator is in the buffer of a part.
    pub(crate) fn data_arrived(
        &mut self,
        slot: usize,
        t: usize,
        p: usize,
        len: u32,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let last = self.conns[slot].head.is_final();
        let task = &mut self.tasks[t];
        task.receiving = false;
        task.received += u64::from(len);
        let stopped = task.is_stopped();
        let part = &mut task.parts[p];
        part.got += len;
        if stopped {
            self.end_if_over(t, data, out);
        } else if part.got >= part.want {
            self.collected(t, p, data, out);
        } else if last || part.got >= part.burst_end {
            self.ask_for_data(t, p, data, out);
        }
    }

    /// Sends an R2T for the next burst of a part.
    pub(crate) fn ask_for_data(
        &mut self,
        t: usize,
        p: usize,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let task = &mut self.tasks[t];
        let slot = task.slot;
        let conn = &mut self.conns[slot];
        let part = &mut task.parts[p];
        part.burst_end = part
            .want
            .min(part.got.saturating_add(conn.params.burst_bytes));
        part.ttt = conn.ttt();
        part.data_sn = 0;
        let offset = part.at + u64::from(part.got);
        let head = Bhs::new(opcode::R2T, flag::FINAL)
            .with(8, &task.lun)
            .with32(16, task.itt)
            .with32(20, part.ttt)
            .with32(36, task.r2t_sn)
            .with32(40, u32::try_from(offset).unwrap_or(0))
            .with32(44, part.burst_end - part.got);
        task.r2t_sn += 1;
        self.send(slot, head, false, &[], data, out);
    }

    /// Carries out what a parameter list says. The buffer stays the part's, except for a pattern.
    pub(crate) fn taken(&mut self, t: usize, p: usize, data: &mut dyn Buffers) {
        let task = &self.tasks[t];
        let (Some(list), Some(buf)) = (task.list(), task.parts[p].buf) else {
            return;
        };
        let slot = task.slot;
        let bytes = data.bytes(buf);
        let result = match list {
            List::Unmap => {
                let task = &mut self.tasks[t];
                let parsed = crate::scsi::copy::parse_unmap(&self.disk, bytes, &mut task.spans);
                parsed
                    .map(|()| task.turn_to(Work::Unmap))
                    .map_err(Failure::Sense)
            }
            List::Copy => {
                let task = &mut self.tasks[t];
                crate::scsi::copy::parse(&self.disk, bytes, &mut task.spans)
                    .map(|list_id| {
                        task.list_id = list_id;
                        task.spans.retain(|span| span.len > 0);
                        task.turn_to(Work::Copy);
                    })
                    .map_err(Failure::Sense)
            }
            List::WriteSame { unmap } => {
                let zero = bytes.iter().all(|b| *b == 0);
                let task = &mut self.tasks[t];
                task.turn_to(match (zero, unmap) {
                    (true, true) => Work::Discard,
                    (true, false) => Work::WriteZeroes,
                    (false, _) => Work::Fill,
                });
                if !zero {
                    task.pattern = task.parts[p].buf.take();
                }
                Ok(())
            }
            List::Sanitize => self.start_sanitize(t, Some(buf), data),
            List::ModeSelect { ten } => {
                match crate::scsi::mode::select(&mut self.disk, ten, bytes) {
                    Ok(changed) => {
                        if changed {
                            self.tell_others(slot, crate::scsi::sense::attention::MODE_CHANGED);
                        }
                        Ok(())
                    }
                    Err(sense) => Err(Failure::Sense(sense)),
                }
            }
            List::ReserveOut { action, scope_type } => {
                let len = be32(&task.cdb, 5) as usize;
                let whole = bytes.len() == len && byte(&task.cdb, 0) == 0x5f;
                if whole {
                    let list = alloc::vec::Vec::from(bytes);
                    self.reserve_out(t, action, scope_type, &list)
                } else {
                    Err(Failure::Sense(Sense::PARAMETER_LENGTH))
                }
            }
        };
        if let Err(failure) = result {
            self.tasks[t].fail(failure);
        }
    }
}
