//! A small iSCSI initiator as a pure encoder and decoder: one session on one connection, one command
//! at a time. It knows nothing of the target's code. What it hears is checked as far as an initiator
//! can: sequence numbers, order of data, digests, tags.

use crate::nbd::Answer;

const HEAD: usize = 48;
const NO_TAG: u32 = u32::MAX;
/// Bytes of one Data-Out.
const DATA_OUT_BYTES: usize = 8192;

/// How a run's initiators log in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manners {
    /// Logical block of the target, in bytes.
    pub block: u64,
    /// CRC32C over headers and data.
    pub digests: bool,
    /// Data goes along with the command.
    pub immediate: bool,
    /// MaxBurstLength; FirstBurstLength is the same.
    pub burst: u32,
    /// Largest data segment that the initiator takes.
    pub segment: u32,
}

/// A command: its CDB, its data, the bytes that it reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// The request's number in the history.
    pub number: u64,
    /// What to do.
    pub cdb: Vec<u8>,
    /// Data that goes out.
    pub data: Vec<u8>,
    /// Bytes that come in.
    pub reads: usize,
    /// Has to run alone in its session.
    pub ordered: bool,
}

/// What an initiator has heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// The end of a command.
    Answered(u64, Result<Answer, String>),
    /// The command was aborted; `true`: the target had it and has ended it.
    Aborted(u64, bool),
    /// The unit was reset, with everything that it had to do; a command of this session among it.
    Reset(Option<u64>),
    /// The target breaks the protocol.
    Broken(String),
}

#[derive(Debug)]
struct Open {
    command: Command,
    tag: u32,
    cmd_sn: u32,
    received: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Managing {
    /// Of the task with this tag.
    Abort(u32),
    /// Of the unit, with the commands before this one.
    Reset(u32),
}

/// A session.
#[derive(Debug)]
pub struct Session {
    manners: Manners,
    /// Sent and not taken by the target.
    pub up: Vec<u8>,
    down: Vec<u8>,
    in_full_feature: bool,
    /// The connection has lost bytes: nothing more is sent.
    torn: bool,
    /// Waits for the end of the login.
    waiting: Option<Command>,
    open: Option<Open>,
    managing: Option<(u32, Managing)>,
    cmd_sn: u32,
    stat_sn: Option<u32>,
    next_tag: u32,
}

fn put(head: &mut [u8; HEAD], at: usize, value: u32) {
    head[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_be_bytes(word.unwrap_or_default())
}

impl Session {
    /// Begins the login of initiator `number`.
    pub fn login(manners: Manners, number: usize) -> Session {
        let mut session = Session {
            manners,
            up: Vec::new(),
            down: Vec::new(),
            in_full_feature: false,
            torn: false,
            waiting: None,
            open: None,
            managing: None,
            cmd_sn: 1,
            stat_sn: None,
            next_tag: 0,
        };
        // Operational stage to full feature phase, at once.
        let mut head = [0; HEAD];
        (head[0], head[1]) = (0x43, 0x87);
        head[8] = 0x80;
        head[13] = number as u8;
        put(&mut head, 24, session.cmd_sn);
        let digest = if manners.digests { "CRC32C" } else { "None" };
        let immediate = if manners.immediate { "Yes" } else { "No" };
        let text = format!(
            "InitiatorName=iqn.2026-11.io.trilith:client-{number}\0TargetName={TARGET}\0\
             SessionType=Normal\0HeaderDigest={digest}\0DataDigest={digest}\0\
             ImmediateData={immediate}\0FirstBurstLength={burst}\0MaxBurstLength={burst}\0\
             MaxRecvDataSegmentLength={}\0",
            manners.segment,
            burst = manners.burst,
        );
        session.push(head, text.as_bytes());
        session
    }

    /// Gives a command, which waits for the end of the login.
    pub fn command(&mut self, command: Command) {
        if self.in_full_feature {
            self.send_command(command);
        } else {
            self.waiting = Some(command);
        }
    }

    /// Number of the command that is not answered.
    pub fn asked(&self) -> Option<u64> {
        let waiting = self.waiting.as_ref().map(|command| command.number);
        self.open
            .as_ref()
            .map(|open| open.command.number)
            .or(waiting)
    }

    /// The target has read all of the command that is not answered.
    pub fn is_taken(&self) -> bool {
        self.open.is_some() && self.up.is_empty()
    }

    /// Asks for the end of the command. False: there is none, or something was asked for already.
    pub fn abort(&mut self) -> bool {
        let Some(open) = self.open.as_ref().filter(|_| self.managing.is_none()) else {
            return false;
        };
        let (tag, cmd_sn) = (open.tag, open.cmd_sn);
        self.manage(Managing::Abort(tag), 1, tag, cmd_sn);
        true
    }

    /// Asks for the reset of the unit. False: something was asked for already.
    pub fn reset_unit(&mut self) -> bool {
        let may = self.in_full_feature && self.managing.is_none();
        if may {
            self.manage(Managing::Reset(self.cmd_sn), 5, NO_TAG, 0);
        }
        may
    }

    fn manage(&mut self, what: Managing, function: u8, of_tag: u32, of_cmd_sn: u32) {
        let tag = self.tag();
        let mut head = [0; HEAD];
        (head[0], head[1]) = (0x42, 0x80 | function);
        put(&mut head, 16, tag);
        put(&mut head, 20, of_tag);
        put(&mut head, 24, self.cmd_sn);
        put(&mut head, 32, of_cmd_sn);
        self.managing = Some((tag, what));
        self.push(head, &[]);
    }

    fn tag(&mut self) -> u32 {
        self.next_tag += 1;
        self.next_tag
    }

    fn send_command(&mut self, command: Command) {
        let tag = self.tag();
        let mut head = [0; HEAD];
        let read = if command.reads > 0 { 0x40 } else { 0 };
        let write = if command.data.is_empty() { 0 } else { 0x20 };
        head[0] = 0x01;
        head[1] = 0x80 | read | write | if command.ordered { 2 } else { 1 };
        put(&mut head, 16, tag);
        let expected = command.reads.max(command.data.len());
        put(&mut head, 20, expected as u32);
        put(&mut head, 24, self.cmd_sn);
        head[32..32 + command.cdb.len()].copy_from_slice(&command.cdb);
        let immediate = if self.manners.immediate {
            command.data.len().min(self.manners.burst as usize)
        } else {
            0
        };
        self.push(head, &command.data[..immediate]);
        self.open = Some(Open {
            command,
            tag,
            cmd_sn: self.cmd_sn,
            received: Vec::new(),
        });
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
    }

    /// What was sent and not taken is lost from this byte on, and so is all that follows. Where
    /// nothing is lost the connection goes on: the command may be answered before anybody ends it.
    pub fn tear(&mut self, left: usize) {
        self.torn = left < self.up.len();
        self.up.truncate(left);
    }

    fn push(&mut self, mut head: [u8; HEAD], data: &[u8]) {
        if self.torn {
            return;
        }
        put(&mut head, 28, self.stat_sn.unwrap_or(0));
        head[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let digests = self.in_full_feature && self.manners.digests;
        self.up.extend_from_slice(&head);
        if digests {
            self.up
                .extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        }
        let start = self.up.len();
        self.up.extend_from_slice(data);
        self.up.resize(start + data.len().next_multiple_of(4), 0);
        if digests && !data.is_empty() {
            let digest = crc32c::crc32c(&self.up[start..]);
            self.up.extend_from_slice(&digest.to_le_bytes());
        }
    }

    /// Bytes from the target.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.down.extend_from_slice(bytes);
    }

    /// What the received bytes say; `None`: no whole PDU is there.
    pub fn hear(&mut self) -> Option<Result<Option<Heard>, String>> {
        let digest = if self.in_full_feature && self.manners.digests {
            4
        } else {
            0
        };
        let head: [u8; HEAD] = self.down.get(..HEAD)?.try_into().ok()?;
        let len = (word(&head, 4) & 0xff_ffff) as usize;
        let padded = len.next_multiple_of(4);
        let tail = if len > 0 { digest } else { 0 };
        let all = HEAD + digest + padded + tail;
        if self.down.len() < all {
            return None;
        }
        let pdu: Vec<u8> = self.down.drain(..all).collect();
        let body = &pdu[HEAD + digest..HEAD + digest + padded];
        let good =
            |bytes: &[u8], at: usize| pdu[at..at + 4] == crc32c::crc32c(bytes).to_le_bytes()[..];
        if digest > 0 && !(good(&head, HEAD) && (len == 0 || good(body, all - 4))) {
            return Some(Err(format!("wrong digest on opcode {:#x}", head[0])));
        }
        Some(self.pdu(&head, &body[..len]))
    }

    fn pdu(&mut self, head: &[u8; HEAD], body: &[u8]) -> Result<Option<Heard>, String> {
        let opcode = head[0] & 0x3f;
        let status = matches!(opcode, 0x21..=0x23 | 0x32) || opcode == 0x25 && head[1] & 1 != 0;
        if status {
            let told = word(head, 24);
            if self.stat_sn.is_some_and(|expected| expected != told) {
                return Err(format!("StatSN {told}, expected {:?}", self.stat_sn));
            }
            self.stat_sn = Some(told.wrapping_add(1));
        }
        match opcode {
            0x20 => {
                if word(head, 20) != NO_TAG {
                    self.answer_ping(head);
                }
                Ok(None)
            }
            0x21 => self.response(head, body),
            0x22 => self.managed(head),
            0x23 => self.logged_in(head),
            0x25 => self.data_in(head, body),
            0x31 => self.r2t(head).map(|()| None),
            // The connection is going to be closed.
            0x32 => Ok(None),
            _ => Err(format!("opcode {opcode:#x}: {head:02x?}")),
        }
    }

    fn answer_ping(&mut self, ping: &[u8; HEAD]) {
        let mut head = [0; HEAD];
        (head[0], head[1]) = (0x40, 0x80);
        head[8..16].copy_from_slice(&ping[8..16]);
        put(&mut head, 16, NO_TAG);
        head[20..24].copy_from_slice(&ping[20..24]);
        put(&mut head, 24, self.cmd_sn);
        self.push(head, &[]);
    }

    fn logged_in(&mut self, head: &[u8; HEAD]) -> Result<Option<Heard>, String> {
        let status = (head[36], head[37]);
        match status {
            (0, 0) if head[1] & 0x83 == 0x83 => {
                self.in_full_feature = true;
                if let Some(command) = self.waiting.take() {
                    self.send_command(command);
                }
                Ok(None)
            }
            // Out of resources, or the target is leaving: it closes.
            (3, _) => Ok(None),
            _ => Err(format!("login status {status:?}, flags {:#x}", head[1])),
        }
    }

    fn opened(&mut self, head: &[u8; HEAD]) -> Result<&mut Open, String> {
        let tag = word(head, 16);
        let known = self.open.as_mut().filter(|open| open.tag == tag);
        known.ok_or_else(|| format!("opcode {:#x} about task {tag}", head[0]))
    }

    fn r2t(&mut self, head: &[u8; HEAD]) -> Result<(), String> {
        let (offset, len) = (word(head, 40) as usize, word(head, 44) as usize);
        let burst = self.manners.burst as usize;
        let data = self.opened(head)?.command.data.clone();
        if offset + len > data.len() || len == 0 || len > burst {
            return Err(format!("R2T for {offset}+{len} of {}", data.len()));
        }
        let mut at = 0;
        let mut serial = 0;
        while at < len {
            let step = (len - at).min(DATA_OUT_BYTES);
            let mut out = [0; HEAD];
            out[0] = 0x05;
            out[1] = if at + step == len { 0x80 } else { 0 };
            out[16..24].copy_from_slice(&head[16..24]);
            put(&mut out, 36, serial);
            put(&mut out, 40, (offset + at) as u32);
            self.push(out, &data[offset + at..offset + at + step]);
            at += step;
            serial += 1;
        }
        Ok(())
    }

    fn data_in(&mut self, head: &[u8; HEAD], body: &[u8]) -> Result<Option<Heard>, String> {
        let segment = self.manners.segment as usize;
        let open = self.opened(head)?;
        if word(head, 40) as usize != open.received.len() || body.len() > segment {
            return Err(format!(
                "{} bytes at {} after {}",
                body.len(),
                word(head, 40),
                open.received.len()
            ));
        }
        open.received.extend_from_slice(body);
        if head[1] & 1 == 0 {
            return Ok(None);
        }
        self.response(head, &[])
    }

    /// The status of a command.
    fn response(&mut self, head: &[u8; HEAD], body: &[u8]) -> Result<Option<Heard>, String> {
        self.opened(head)?;
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let number = open.command.number;
        let sense = body.get(2..).filter(|sense| sense.len() >= 18);
        let key = sense.map_or(0, |sense| sense[2] & 0xf);
        let answer = match (head[3], key) {
            (0, _) if open.received.len() != open.command.reads => {
                let (found, expected) = (open.received.len(), open.command.reads);
                return Err(format!("{found} bytes read, expected {expected}"));
            }
            (0, _) if open.command.reads > 0 => Ok(Answer::Data(open.received)),
            (0, _) => Ok(Answer::Done),
            // UNIT ATTENTION: it was not begun.
            (2, 6) => {
                self.send_command(open.command);
                return Ok(None);
            }
            (2, 0xe) => Ok(Answer::Differs(sense.map_or(0, |s| word(s, 3)).into())),
            // ILLEGAL REQUEST: nothing that we ask for is.
            (2, 0 | 5) => return Err(format!("sense {body:02x?} to {:02x?}", open.command.cdb)),
            (status, key) => Err(format!("SCSI status {status:#x}, sense key {key:#x}")),
        };
        Ok(Some(Heard::Answered(number, answer)))
    }

    fn managed(&mut self, head: &[u8; HEAD]) -> Result<Option<Heard>, String> {
        let known = self.managing.take();
        let Some((_, what)) = known.filter(|(tag, _)| *tag == word(head, 16)) else {
            return Err(format!("answer to management {}", word(head, 16)));
        };
        let is_meant = |open: &mut Open| match what {
            Managing::Abort(tag) => open.tag == tag,
            Managing::Reset(before) => open.cmd_sn < before,
        };
        let number = |open: Open| open.command.number;
        match (what, head[2]) {
            (Managing::Abort(_), response @ (0 | 1)) => {
                let open = self.open.take_if(is_meant).map(number);
                Ok(open.map(|number| Heard::Aborted(number, response == 0)))
            }
            (Managing::Reset(_), 0) => {
                let open = self.open.take_if(is_meant).map(number);
                Ok(Some(Heard::Reset(open)))
            }
            (what, response) => Err(format!("response {response} to {what:?}")),
        }
    }
}

/// Name of the target.
pub const TARGET: &str = "iqn.2026-11.io.trilith:sim";

/// READ 10, WRITE 10, SYNCHRONIZE CACHE 10 and their relatives.
pub fn cdb10(opcode: u8, flags: u8, lba: u64, blocks: u64) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&(lba as u32).to_be_bytes());
    cdb.push(0);
    cdb.extend_from_slice(&(blocks as u16).to_be_bytes());
    cdb.push(0);
    cdb
}

/// READ 16, WRITE 16, WRITE SAME 16 and their relatives.
pub fn cdb16(opcode: u8, flags: u8, lba: u64, blocks: u64) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&(blocks as u32).to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

/// COMPARE AND WRITE.
pub fn compare_and_write(flags: u8, lba: u64, blocks: u64) -> Vec<u8> {
    let mut cdb = cdb16(0x89, flags, lba, 0);
    cdb[13] = blocks as u8;
    cdb
}

/// UNMAP of one range, and its parameter list.
pub fn unmap(lba: u64, blocks: u64) -> (Vec<u8>, Vec<u8>) {
    let list_bytes = 24u64;
    let cdb = cdb10(0x42, 0, 0, list_bytes);
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend_from_slice(&lba.to_be_bytes());
    list.extend_from_slice(&(blocks as u32).to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    (cdb, list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session in full feature phase that has sent one command.
    fn asked() -> Session {
        let manners = Manners {
            block: 4096,
            digests: false,
            immediate: true,
            burst: 4096,
            segment: 4096,
        };
        let mut session = Session::login(manners, 0);
        session.in_full_feature = true;
        session.up.clear();
        session.command(read(1));
        session
    }

    fn read(number: u64) -> Command {
        Command {
            number,
            cdb: cdb10(0x28, 0, 0, 1),
            data: Vec::new(),
            reads: 4096,
            ordered: false,
        }
    }

    #[test]
    fn torn_session_sends_nothing_more_unless_all_of_its_bytes_had_left() {
        for (left, sends) in [(0, false), (HEAD - 1, false), (HEAD, true)] {
            let mut session = asked();
            assert_eq!(session.up.len(), HEAD);
            session.tear(left);
            assert_eq!(session.up.len(), left);
            session.up.clear();
            session.command(read(2));
            assert_eq!(!session.up.is_empty(), sends, "{left} bytes had left");
        }
    }
}
