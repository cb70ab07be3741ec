//! One connection slot. Sessions have one connection (MaxConnections is 1), so that a slot is also
//! the session: its parameters, its window, its tasks.

use crate::bytes::{len32, pad};
use crate::limits::{COMMANDS_MAX, UNIT_ATTENTIONS_MAX};
use crate::login::Login;
use crate::params::Params;
use crate::pdu::{BHS_BYTES, Bhs, DIGEST_BYTES, before};
use crate::scsi::reserve::{Port, Standing};
use crate::scsi::sense::{Attention, attention};
use crate::target::Out;
use alloc::boxed::Box;
use alloc::vec::Vec;
use trilith_block::{BufSlice, Buffers, ConnId, FrontendAction, Monotonic};

/// Where a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The slot is not used.
    Free,
    /// The login phase.
    Login,
    /// Full feature phase.
    Full,
    /// The driver was told to close.
    Closing,
    /// The connection is gone; the engine still works on its tasks.
    Orphan,
}

/// What is received next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recv {
    /// A basic header segment, with its digest.
    Head,
    /// Additional header segments.
    Ahs(usize),
    /// Data that is looked at here: text, with padding and digest.
    Text(usize),
    /// Data into a buffer.
    Payload(BufSlice),
    /// Padding and digest after it.
    Tail(usize),
    /// Data that is thrown away.
    Discard(u64),
    /// Nothing, until the task that the data is for has memory.
    Wait,
}

/// What is done with the data segment of the current PDU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sink {
    None,
    Text,
    /// The ping data of a NOP-Out.
    Nop,
    /// Data of a task: its slot and part.
    Data {
        task: usize,
        part: usize,
    },
}

/// A connection slot.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) phase: Phase,
    pub(crate) recv: Recv,
    pub(crate) head: Bhs,
    pub(crate) sink: Sink,
    /// The buffer being received into.
    pub(crate) payload: Option<BufSlice>,
    /// Data after it that is thrown away.
    pub(crate) excess: u32,
    pub(crate) login: Option<Box<Login>>,
    pub(crate) login_end: Monotonic,
    pub(crate) params: Params,
    pub(crate) port: Port,
    pub(crate) tsih: u16,
    pub(crate) cid: u16,
    pub(crate) exp_cmd_sn: u32,
    max_cmd_sn: u32,
    pub(crate) stat_sn: u32,
    /// Initiator task tag and slot of each task.
    pub(crate) tasks: Vec<(u32, usize)>,
    /// Tasks that count for the window.
    pub(crate) window_tasks: u32,
    pub(crate) immediate_tasks: usize,
    /// Tasks with attribute ORDERED.
    pub(crate) ordered_tasks: usize,
    /// Parts that wait for data of the initiator.
    pub(crate) collecting: usize,
    /// Payload bytes in flight.
    pub(crate) held: u64,
    pub(crate) attentions: Vec<Attention>,
    pub(crate) standing: Standing,
    /// Version of the reservations that `standing` is of.
    pub(crate) standing_version: Option<u64>,
    /// What of the additional header segments was read with the header.
    pub(crate) ahs: Vec<u8>,
    /// Text of a negotiation that is spread over requests.
    pub(crate) text: Vec<u8>,
    /// Text that the initiator has not fetched yet, and the tag under which it does.
    pub(crate) text_left: Vec<u8>,
    pub(crate) text_ttt: u32,
    pub(crate) next_ttt: u32,
    pub(crate) seen: Monotonic,
    pub(crate) ping_end: Option<Monotonic>,
}

impl Conn {
    pub(crate) fn new() -> Conn {
        Conn {
            id: ConnId(0),
            phase: Phase::Free,
            recv: Recv::Head,
            head: Bhs([0; BHS_BYTES]),
            sink: Sink::None,
            payload: None,
            excess: 0,
            login: None,
            login_end: Monotonic(0),
            params: Params::default(),
            port: Port::default(),
            tsih: 0,
            cid: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            stat_sn: 0,
            tasks: Vec::new(),
            window_tasks: 0,
            immediate_tasks: 0,
            ordered_tasks: 0,
            collecting: 0,
            held: 0,
            attentions: Vec::new(),
            standing: Standing::default(),
            standing_version: None,
            ahs: Vec::new(),
            text: Vec::new(),
            text_left: Vec::new(),
            text_ttt: 0,
            next_ttt: 0,
            seen: Monotonic(0),
            ping_end: None,
        }
    }

    /// Makes the slot that of a new connection.
    pub(crate) fn open(&mut self, id: ConnId, now: Monotonic, login_end: Monotonic) {
        *self = Conn {
            id,
            phase: Phase::Login,
            login: Some(Box::new(Login::new())),
            login_end,
            seen: now,
            ..Conn::new()
        };
    }

    /// True in full feature phase of a session.
    pub(crate) fn is_session(&self) -> bool {
        self.phase == Phase::Full
    }

    /// True when something can still be sent.
    pub(crate) fn is_talking(&self) -> bool {
        matches!(self.phase, Phase::Login | Phase::Full)
    }

    /// Bytes of a header with its digest.
    pub(crate) fn head_bytes(&self) -> usize {
        BHS_BYTES
            + if self.params.header_digest {
                DIGEST_BYTES
            } else {
                0
            }
    }

    /// Bytes after a data segment of `len` bytes: padding and digest.
    pub(crate) fn tail_bytes(&self, len: u32) -> u32 {
        let digest = if self.params.data_digest && len > 0 {
            4
        } else {
            0
        };
        pad(len) + digest
    }

    /// The window is [ExpCmdSN, ExpCmdSN + commands that still fit); its end never moves back.
    pub(crate) fn start_window(&mut self, cmd_sn: u32) {
        self.exp_cmd_sn = cmd_sn;
        self.max_cmd_sn = cmd_sn.wrapping_sub(1);
        self.update_window();
    }

    fn update_window(&mut self) {
        let room = COMMANDS_MAX.saturating_sub(self.window_tasks);
        let max = self.exp_cmd_sn.wrapping_add(room).wrapping_sub(1);
        if before(self.max_cmd_sn, max) {
            self.max_cmd_sn = max;
        }
    }

    /// True when a CmdSN is in the window.
    pub(crate) fn in_window(&self, cmd_sn: u32) -> bool {
        !before(cmd_sn, self.exp_cmd_sn) && !before(self.max_cmd_sn, cmd_sn)
    }

    /// Fills in the sequence numbers. `status`: the PDU has a StatSN of its own.
    pub(crate) fn stamp(&mut self, head: Bhs, status: bool) -> Bhs {
        self.update_window();
        let head = head
            .with32(24, self.stat_sn)
            .with32(28, self.exp_cmd_sn)
            .with32(32, self.max_cmd_sn);
        if status {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        head
    }

    /// A target transfer tag that is not "none".
    pub(crate) fn ttt(&mut self) -> u32 {
        self.next_ttt = (self.next_ttt + 1) & 0x7fff_ffff;
        self.next_ttt
    }

    /// The slot of the task with an initiator task tag.
    pub(crate) fn task(&self, itt: u32) -> Option<usize> {
        let found = self.tasks.iter().find(|(tag, _)| *tag == itt);
        found.map(|(_, task)| *task)
    }

    /// Keeps a unit attention, once.
    pub(crate) fn attend(&mut self, code: Attention) {
        if self.attentions.contains(&code) {
            return;
        }
        if self.attentions.len() == UNIT_ATTENTIONS_MAX {
            // "Power on, reset" stands for all of them.
            self.attentions.clear();
            self.attentions.push(attention::POWER_ON);
        } else {
            self.attentions.push(code);
        }
    }

    /// Sends a PDU whose data is at hand.
    pub(crate) fn send(
        &self,
        head: Bhs,
        body: &[u8],
        data: &dyn Buffers,
        wire: &mut Vec<u8>,
        out: &mut Out,
    ) {
        let len = len32(body.len());
        wire.clear();
        wire.extend_from_slice(&head.with_data_bytes(len).0);
        if self.params.header_digest {
            let digest = data.crc32c(0, wire);
            wire.extend_from_slice(&digest.to_le_bytes());
        }
        let start = wire.len();
        wire.extend_from_slice(body);
        wire.resize(wire.len() + pad(len) as usize, 0);
        if self.params.data_digest && len > 0 {
            let digest = data.crc32c(0, &wire[start..]);
            wire.extend_from_slice(&digest.to_le_bytes());
        }
        send_bytes(out, self.id, wire, None);
    }

    /// Sends a PDU whose data is in a buffer.
    pub(crate) fn send_payload(
        &self,
        head: Bhs,
        payload: BufSlice,
        data: &dyn Buffers,
        out: &mut Out,
    ) {
        let head = head.with_data_bytes(payload.len);
        let mut first = [0; BHS_BYTES + DIGEST_BYTES];
        first[..BHS_BYTES].copy_from_slice(&head.0);
        if self.params.header_digest {
            let digest = data.crc32c(0, &head.0);
            first[BHS_BYTES..].copy_from_slice(&digest.to_le_bytes());
        }
        send_bytes(out, self.id, &first[..self.head_bytes()], Some(payload));
        let padding = pad(payload.len) as usize;
        let mut last = [0; 3 + DIGEST_BYTES];
        let mut len = padding;
        if self.params.data_digest {
            let digest = data.crc32c(0, data.bytes(payload));
            let digest = data.crc32c(digest, &last[..padding]);
            last[len..len + DIGEST_BYTES].copy_from_slice(&digest.to_le_bytes());
            len += DIGEST_BYTES;
        }
        if len > 0 {
            send_bytes(out, self.id, &last[..len], None);
        }
    }
}

fn send_bytes(out: &mut Out, conn: ConnId, head: &[u8], payload: Option<BufSlice>) {
    let head = out.bytes(head);
    out.push(FrontendAction::Send {
        conn,
        head,
        payload,
    });
}
