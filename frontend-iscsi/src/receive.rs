//! PDUs as they arrive: header, digests, data segment; and those that are no SCSI commands.

use crate::bytes::be32;
use crate::conn::{Phase, Recv, Sink};
use crate::limits::{PING_SPAN, SEGMENT_BYTES_MAX, TEXT_SEGMENT_BYTES_MAX};
use crate::pdu::{BHS_BYTES, Bhs, DIGEST_BYTES, NO_TAG, flag, opcode, reason};
use crate::scsi::sense::Sense;
use crate::target::{IscsiTarget, Out};
use crate::task::Failure;
use alloc::vec::Vec;
use trilith_block::{BufSlice, Buffers};

impl IscsiTarget {
    /// Bytes that `want` asked for as a header.
    pub(crate) fn header(
        &mut self,
        slot: usize,
        bytes: &[u8],
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        if !self.conns[slot].is_talking() {
            return;
        }
        match self.conns[slot].recv {
            Recv::Head => self.head(slot, bytes, data, out),
            Recv::Ahs(_) => self.ahs(slot, bytes, data, out),
            Recv::Text(_) => self.text_arrived(slot, bytes, data, out),
            Recv::Tail(_) => self.tail(slot, bytes, data, out),
            // Not asked for: the driver and this machine are out of step.
            Recv::Payload(_) | Recv::Discard(_) | Recv::Wait => self.close(slot, data, out),
        }
    }

    fn head(&mut self, slot: usize, bytes: &[u8], data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let Some(head) = bytes.first_chunk::<BHS_BYTES>() else {
            self.close(slot, data, out);
            return;
        };
        conn.head = Bhs(*head);
        let ahs = conn.head.ahs_bytes();
        if ahs > 0 {
            // With a digest its four bytes were read too early: they are the first of the AHS.
            conn.ahs.clear();
            conn.ahs.extend_from_slice(&bytes[BHS_BYTES..]);
            conn.recv = Recv::Ahs(ahs);
            return;
        }
        if conn.params.header_digest && !digest_fits(data, head, &bytes[BHS_BYTES..]) {
            self.bad_header_digest(slot, data, out);
            return;
        }
        self.pdu(slot, data, out);
    }

    fn ahs(&mut self, slot: usize, bytes: &[u8], data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        conn.recv = Recv::Head;
        let mut rest = core::mem::take(&mut conn.ahs);
        rest.extend_from_slice(bytes);
        let at = rest.len().saturating_sub(DIGEST_BYTES);
        if conn.params.header_digest {
            let digest = data.crc32c(data.crc32c(0, &conn.head.0), &rest[..at]);
            if rest[at..] != digest.to_le_bytes() {
                self.bad_header_digest(slot, data, out);
                return;
            }
        }
        // Nothing in them is needed: long CDBs and bidirectional commands are not supported.
        self.pdu(slot, data, out);
    }

    /// RFC 7143 7.7: after a header with a wrong digest the stream cannot be followed.
    fn bad_header_digest(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        self.status.digest_errors += 1;
        self.close(slot, data, out);
    }

    /// A whole header is there: decides what its data segment is for.
    fn pdu(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let head = conn.head;
        let len = head.data_bytes();
        conn.recv = Recv::Head;
        conn.sink = Sink::None;
        if conn.ping_end.take().is_some() {
            // Asked again in time, not when this answer would have been too late.
            let end = conn.seen.after(PING_SPAN);
            self.watch_until(end);
        }
        let conn = &mut self.conns[slot];
        if conn.phase == Phase::Login {
            // RFC 7143 6.3: nothing but login requests before full feature phase.
            if head.opcode() != opcode::LOGIN || len > TEXT_SEGMENT_BYTES_MAX {
                self.close(slot, data, out);
                return;
            }
            self.want_text(slot, data, out);
            return;
        }
        if len > SEGMENT_BYTES_MAX {
            self.close(slot, data, out);
            return;
        }
        match head.opcode() {
            opcode::COMMAND if !conn.params.discovery => self.command(slot, data, out),
            opcode::DATA_OUT if !conn.params.discovery => self.data_out(slot, data, out),
            opcode::TASK_MANAGEMENT if !conn.params.discovery => {
                if self.take_cmd_sn(slot, data, out) {
                    self.manage(slot, data, out);
                }
                self.skip_segment(slot);
            }
            opcode::NOP_OUT => self.nop_out(slot, data, out),
            opcode::TEXT => {
                if len + conn.tail_bytes(len) > TEXT_SEGMENT_BYTES_MAX {
                    if self.take_cmd_sn(slot, data, out) {
                        self.reject(slot, reason::OUT_OF_RESOURCES, data, out);
                    }
                    self.skip_segment(slot);
                } else {
                    self.want_text(slot, data, out);
                }
            }
            opcode::LOGOUT => {
                self.skip_segment(slot);
                if self.take_cmd_sn(slot, data, out) {
                    self.logout(slot, data, out);
                }
            }
            opcode::SNACK => {
                // RFC 7143 11.16: not at error recovery level 0.
                self.reject(slot, reason::SNACK, data, out);
                self.skip_segment(slot);
            }
            opcode::LOGIN => self.close(slot, data, out),
            _ => {
                self.reject(slot, reason::NOT_SUPPORTED, data, out);
                self.skip_segment(slot);
            }
        }
    }

    /// Checks and takes the CmdSN of the current PDU. False: it must be ignored.
    pub(crate) fn take_cmd_sn(
        &mut self,
        slot: usize,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) -> bool {
        let conn = &mut self.conns[slot];
        let head = conn.head;
        if head.is_immediate() {
            return true;
        }
        // RFC 7143 4.2.2.1: outside of the window: silently ignored.
        if !conn.in_window(head.cmd_sn()) {
            return false;
        }
        if head.cmd_sn() != conn.exp_cmd_sn {
            // A gap: with one connection and no retransmission it can never be filled.
            self.close(slot, data, out);
            return false;
        }
        conn.exp_cmd_sn = conn.exp_cmd_sn.wrapping_add(1);
        true
    }

    /// Receives the data segment as text, or handles the empty one.
    fn want_text(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let len = conn.head.data_bytes();
        conn.sink = Sink::Text;
        if len == 0 {
            self.text_arrived(slot, &[], data, out);
        } else {
            conn.recv = Recv::Text((len + conn.tail_bytes(len)) as usize);
        }
    }

    fn text_arrived(&mut self, slot: usize, bytes: &[u8], data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        conn.recv = Recv::Head;
        let len = conn.head.data_bytes() as usize;
        let text = bytes.get(..len).unwrap_or(bytes);
        if conn.params.data_digest && len > 0 {
            let (body, digest) = bytes.split_at(bytes.len().saturating_sub(DIGEST_BYTES));
            if !digest_fits(data, body, digest) {
                self.status.digest_errors += 1;
                self.reject(slot, reason::DATA_DIGEST, data, out);
                return;
            }
        }
        if conn.phase == Phase::Login {
            self.login(slot, text, data, out);
        } else if self.take_cmd_sn(slot, data, out) {
            self.text_request(slot, text, data, out);
        }
    }

    /// Throws the data segment of the current PDU away.
    pub(crate) fn skip_segment(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        let len = conn.head.data_bytes();
        conn.sink = Sink::None;
        conn.recv = if len == 0 {
            Recv::Head
        } else {
            Recv::Discard(u64::from(len + conn.tail_bytes(len)))
        };
    }

    /// Receives the data segment into `slice`; what is longer is thrown away.
    pub(crate) fn want_payload(&mut self, slot: usize, slice: BufSlice, sink: Sink) {
        let conn = &mut self.conns[slot];
        let len = conn.head.data_bytes();
        conn.excess = len - slice.len;
        conn.sink = sink;
        conn.payload = Some(slice);
        conn.recv = Recv::Payload(slice);
    }

    /// The bytes of `Want::Payload` or `Want::Discard` are there.
    pub(crate) fn payload(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        if !conn.is_talking() {
            self.drop_payload(slot, data, out);
            return;
        }
        match conn.recv {
            Recv::Discard(_) => {
                conn.recv = Recv::Head;
                if conn.payload.is_some() {
                    // What was too long is gone; its digest with it.
                    self.segment_arrived(slot, true, data, out);
                }
            }
            Recv::Payload(_) => {
                let tail = conn.tail_bytes(conn.head.data_bytes());
                if conn.excess > 0 {
                    conn.recv = Recv::Discard(u64::from(conn.excess + tail));
                } else if tail > 0 {
                    conn.recv = Recv::Tail(tail as usize);
                } else {
                    self.segment_arrived(slot, true, data, out);
                }
            }
            Recv::Head | Recv::Ahs(_) | Recv::Text(_) | Recv::Tail(_) | Recv::Wait => {
                self.close(slot, data, out);
            }
        }
    }

    fn tail(&mut self, slot: usize, bytes: &[u8], data: &mut dyn Buffers, out: &mut Out) {
        let conn = &self.conns[slot];
        let mut good = true;
        if conn.params.data_digest
            && let Some(slice) = conn.payload
        {
            let (padding, digest) = bytes.split_at(bytes.len().saturating_sub(DIGEST_BYTES));
            let crc = data.crc32c(data.crc32c(0, data.bytes(slice)), padding);
            good = digest == crc.to_le_bytes();
        }
        self.segment_arrived(slot, good, data, out);
    }

    /// A data segment is in its buffer. `good`: its digest fits.
    fn segment_arrived(&mut self, slot: usize, good: bool, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        conn.recv = Recv::Head;
        let Some(slice) = conn.payload.take() else {
            return;
        };
        let sink = core::mem::replace(&mut conn.sink, Sink::None);
        if !good {
            self.status.digest_errors += 1;
            self.reject(slot, reason::DATA_DIGEST, data, out);
        }
        match sink {
            Sink::Data { task, part } => {
                if !good {
                    // RFC 7143 7.8: at level 0 the task ends with CHECK CONDITION.
                    self.tasks[task].fail(Failure::Sense(Sense::DATA_DIGEST));
                }
                self.data_arrived(slot, task, part, slice.len, data, out);
            }
            Sink::Nop => {
                if good {
                    self.nop_answer(slot, Some(slice), data, out);
                }
                data.release(slice.buf);
            }
            Sink::None | Sink::Text => data.release(slice.buf),
        }
    }

    /// The connection receives no more: gives the buffer of the current PDU back.
    pub(crate) fn drop_payload(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let sink = core::mem::replace(&mut conn.sink, Sink::None);
        let Some(slice) = conn.payload.take() else {
            return;
        };
        match sink {
            Sink::Data { task, .. } => {
                self.tasks[task].receiving = false;
                self.end_if_over(task, data, out);
            }
            Sink::Nop | Sink::None | Sink::Text => data.release(slice.buf),
        }
    }

    /// RFC 7143 11.17: the header of the rejected PDU goes back.
    pub(crate) fn reject(
        &mut self,
        slot: usize,
        reason: u8,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        self.status.rejects += 1;
        let rejected = self.conns[slot].head;
        let head = Bhs::new(opcode::REJECT, flag::FINAL)
            .with_byte(2, reason)
            .with32(16, NO_TAG);
        self.send(slot, head, true, &rejected.0, data, out);
    }

    fn nop_out(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let head = self.conns[slot].head;
        let len = head.data_bytes();
        // An answer to our ping, or a sign of life that wants no answer.
        if head.itt() == NO_TAG {
            self.skip_segment(slot);
            return;
        }
        if !self.take_cmd_sn(slot, data, out) {
            self.skip_segment(slot);
            return;
        }
        if len == 0 {
            self.nop_answer(slot, None, data, out);
            return;
        }
        // RFC 7143 11.19.4: as much ping data as the initiator takes.
        let kept = len.min(self.conns[slot].params.peer_segment);
        match data.alloc(kept) {
            Some(slice) => self.want_payload(slot, slice, Sink::Nop),
            None => {
                self.reject(slot, reason::OUT_OF_RESOURCES, data, out);
                self.skip_segment(slot);
            }
        }
    }

    fn nop_answer(
        &mut self,
        slot: usize,
        ping: Option<BufSlice>,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let asked = self.conns[slot].head;
        let head = Bhs::new(opcode::NOP_IN, flag::FINAL)
            .with(8, &asked.lun())
            .with32(16, asked.itt())
            .with32(20, NO_TAG);
        match ping {
            None => self.send(slot, head, true, &[], data, out),
            Some(slice) => {
                let conn = &mut self.conns[slot];
                let head = conn.stamp(head, true);
                conn.send_payload(head, slice, data, out);
            }
        }
    }

    fn logout(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let head = self.conns[slot].head;
        let (why, cid) = (head.flags() & 0x7f, head.half(20));
        // RFC 7143 11.15.1: 0 closed, 1 no such connection, 2 no recovery.
        let answer = match why {
            0 => 0,
            1 if cid == self.conns[slot].cid => 0,
            1 => 1,
            _ => 2,
        };
        let response = Bhs::new(opcode::LOGOUT_RESPONSE, flag::FINAL)
            .with_byte(2, answer)
            .with32(16, head.itt());
        self.send(slot, response, true, &[], data, out);
        if answer == 0 {
            self.close(slot, data, out);
        }
    }

    /// A text request: SendTargets, a new segment length, or keys that we do not know.
    fn text_request(&mut self, slot: usize, text: &[u8], data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let head = conn.head;
        let more = head.flags() & flag::CONTINUE != 0;
        if head.word20() != NO_TAG && head.word20() == conn.text_ttt && !conn.text_left.is_empty() {
            // RFC 7143 11.10.4: the initiator fetches the rest of an answer.
            self.text_answer(slot, head.itt(), data, out);
            return;
        }
        if conn.text.len() + text.len() > crate::limits::TEXT_BYTES_MAX {
            conn.text.clear();
            self.reject(slot, reason::OUT_OF_RESOURCES, data, out);
            return;
        }
        conn.text.extend_from_slice(text);
        if more {
            let ttt = conn.ttt();
            let response = Bhs::new(opcode::TEXT_RESPONSE, 0)
                .with32(16, head.itt())
                .with32(20, ttt);
            self.send(slot, response, true, &[], data, out);
            return;
        }
        let text = core::mem::take(&mut conn.text);
        let mut answer = Vec::new();
        if self.text_keys(slot, &text, &mut answer) {
            self.conns[slot].text_left = answer;
            self.text_answer(slot, head.itt(), data, out);
        } else {
            self.reject(slot, reason::PROTOCOL, data, out);
        }
    }

    /// Sends as much of the answer as the initiator takes in one PDU.
    fn text_answer(&mut self, slot: usize, itt: u32, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let mut body = core::mem::take(&mut conn.text_left);
        let room = conn.params.peer_segment as usize;
        let (mut flags, mut ttt) = (flag::FINAL, NO_TAG);
        if body.len() > room {
            conn.text_left = body.split_off(room);
            ttt = conn.ttt();
            conn.text_ttt = ttt;
            flags = flag::CONTINUE;
        }
        let response = Bhs::new(opcode::TEXT_RESPONSE, flags)
            .with32(16, itt)
            .with32(20, ttt);
        self.send(slot, response, true, &body, data, out);
    }
}

/// True when four bytes are the digest of others.
fn digest_fits(data: &dyn Buffers, bytes: &[u8], digest: &[u8]) -> bool {
    digest.len() == DIGEST_BYTES && be32(digest, 0).swap_bytes() == data.crc32c(0, bytes)
}
