//! A small iSCSI initiator that can lose its target and say what it does not know: every command
//! ends with a status, or is unknown (the connection died first). It knows nothing of the target's
//! code.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(90);
/// Bytes of a basic header segment.
const HEAD: usize = 48;
/// Longest data segment that we take.
const SEGMENT_MAX: usize = 1 << 20;

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// SCSI statuses.
pub mod status {
    /// GOOD.
    pub const GOOD: u8 = 0;
    /// CHECK CONDITION.
    pub const CHECK_CONDITION: u8 = 2;
    /// RESERVATION CONFLICT.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// Tag of the command.
    pub tag: u32,
    /// SCSI status.
    pub status: u8,
    /// Sense key, additional sense code and its qualifier.
    pub sense: Option<(u8, u8, u8)>,
    /// Data read.
    pub data: Vec<u8>,
}

impl Done {
    /// True when it went well.
    pub fn is_good(&self) -> bool {
        self.status == status::GOOD
    }
}

/// How to log in.
#[derive(Clone, Debug)]
pub struct Login {
    /// Name of the target.
    pub target: String,
    /// Name of the initiator.
    pub initiator: String,
    /// Last byte of the session's identifier.
    pub isid: u8,
    /// CRC32C over headers and data.
    pub digests: bool,
}

/// A session of one connection.
#[derive(Debug)]
pub struct Initiator {
    stream: BufReader<TcpStream>,
    digests: bool,
    cmd_sn: u32,
    exp_stat_sn: u32,
    next_tag: u32,
    data: BTreeMap<u32, Vec<u8>>,
}

/// The header of a PDU.
fn head(opcode: u8, flags: u8) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    (head[0], head[1]) = (opcode, flags);
    head
}

fn put(head: &mut [u8; HEAD], at: usize, value: u32) {
    head[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_be_bytes(bytes.unwrap_or_default())
}

/// READ 10 or WRITE 10 and their relatives.
pub fn cdb10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.push(0);
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.push(0);
    cdb
}

/// COMPARE AND WRITE of up to 255 blocks.
pub fn compare_and_write(lba: u64, blocks: u8) -> Vec<u8> {
    let mut cdb = vec![0x89, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&[0, 0, 0, blocks, 0, 0]);
    cdb
}

impl Initiator {
    /// Logs in, without authentication.
    ///
    /// # Errors
    /// When there is no connection, or the target refuses; the error then has its status.
    pub fn login(address: &str, login: &Login) -> Result<Initiator> {
        let stream = TcpStream::connect(address).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut this = Initiator {
            stream: BufReader::with_capacity(BUFFER, stream),
            digests: false,
            cmd_sn: 1,
            exp_stat_sn: 0,
            next_tag: 0,
            data: BTreeMap::new(),
        };
        // Operational stage to full feature phase, at once.
        let mut request = head(0x43, 0x87);
        request[8] = 0x80;
        request[13] = login.isid;
        put(&mut request, 24, this.cmd_sn);
        let digest = if login.digests { "CRC32C" } else { "None" };
        let keys = [
            ("InitiatorName", login.initiator.as_str()),
            ("TargetName", &login.target),
            ("SessionType", "Normal"),
            ("HeaderDigest", digest),
            ("DataDigest", digest),
            ("MaxRecvDataSegmentLength", "262144"),
            ("ImmediateData", "Yes"),
            ("FirstBurstLength", "262144"),
        ];
        let text: String = keys.map(|(key, value)| format!("{key}={value}\0")).concat();
        this.send(request, text.as_bytes())?;
        let (answer, _) = this.receive()?;
        ensure!(answer[0] & 0x3f == 0x23, "opcode {:#x}", answer[0]);
        let (class, detail) = (answer[36], answer[37]);
        ensure!(class == 0, "login status {class:02x}{detail:02x}");
        ensure!(answer[1] & 0x83 == 0x83, "login goes on: {:#x}", answer[1]);
        this.digests = login.digests;
        Ok(this)
    }

    /// Logs in and takes the unit attention that a new session has.
    ///
    /// # Errors
    /// As [`Initiator::login`]; or the unit does not become ready.
    pub fn ready(address: &str, login: &Login) -> Result<Initiator> {
        let mut this = Initiator::login(address, login)?;
        for _ in 0..8 {
            let done = this.command(&[0; 6], &[], 0)?;
            if done.is_good() {
                return Ok(this);
            }
        }
        bail!("the unit does not become ready")
    }

    fn send(&mut self, mut head: [u8; HEAD], body: &[u8]) -> Result<()> {
        let len = u32::try_from(body.len())?;
        head[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
        let mut pdu = Vec::with_capacity(HEAD + body.len() + 12);
        pdu.extend_from_slice(&head);
        if self.digests {
            pdu.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        }
        let start = pdu.len();
        pdu.extend_from_slice(body);
        pdu.resize(start + body.len().next_multiple_of(4), 0);
        if self.digests && !body.is_empty() {
            let digest = crc32c::crc32c(&pdu[start..]);
            pdu.extend_from_slice(&digest.to_le_bytes());
        }
        self.stream.get_mut().write_all(&pdu).context("send a PDU")
    }

    fn checked(&mut self, len: usize, what: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream
            .read_exact(&mut bytes)
            .with_context(|| format!("read {what}"))?;
        if self.digests {
            let mut digest = [0; 4];
            self.stream.read_exact(&mut digest).context("read digest")?;
            ensure!(
                crc32c::crc32c(&bytes).to_le_bytes() == digest,
                "digest of {what}"
            );
        }
        Ok(bytes)
    }

    fn receive(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        let head = self.checked(HEAD, "a header")?;
        let len = usize::try_from(word(&head, 4) & 0xff_ffff)?;
        ensure!(len <= SEGMENT_MAX, "a data segment of {len} bytes");
        let mut body = Vec::new();
        if len > 0 {
            body = self.checked(len.next_multiple_of(4), "data")?;
            body.truncate(len);
        }
        Ok((head, body))
    }

    /// Sends a command and all of its data at once; its tag.
    ///
    /// # Errors
    /// When the connection is gone: what becomes of it is unknown.
    pub fn send_command(&mut self, cdb: &[u8], data: &[u8], reads: u32) -> Result<u32> {
        let mut flags = 0x81;
        flags |= if reads > 0 { 0x40 } else { 0 };
        flags |= if data.is_empty() { 0 } else { 0x20 };
        let mut request = head(0x01, flags);
        self.next_tag += 1;
        put(&mut request, 16, self.next_tag);
        put(&mut request, 20, reads.max(u32::try_from(data.len())?));
        put(&mut request, 24, self.cmd_sn);
        put(&mut request, 28, self.exp_stat_sn);
        request[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(request, data)?;
        Ok(self.next_tag)
    }

    /// The next command that ends.
    ///
    /// # Errors
    /// When the connection is gone or nothing comes.
    pub fn answer(&mut self) -> Result<Done> {
        loop {
            let (head, body) = self.receive()?;
            let tag = word(&head, 16);
            match head[0] & 0x3f {
                // Data-In, perhaps with the status.
                0x25 => {
                    let data = self.data.entry(tag).or_default();
                    ensure!(
                        usize::try_from(word(&head, 40))? == data.len(),
                        "data out of order"
                    );
                    data.extend_from_slice(&body);
                    if head[1] & 1 != 0 {
                        return Ok(self.done(&head, &[]));
                    }
                }
                0x21 => return Ok(self.done(&head, &body)),
                // A ping that wants an answer.
                0x20 if word(&head, 20) != u32::MAX => {
                    let mut pong = self::head(0x40, 0x80);
                    put(&mut pong, 16, u32::MAX);
                    pong[20..24].copy_from_slice(&head[20..24]);
                    put(&mut pong, 24, self.cmd_sn);
                    put(&mut pong, 28, self.exp_stat_sn);
                    self.send(pong, &[])?;
                }
                // No answer is wanted, or the target says what it will do.
                0x20 | 0x32 => {}
                opcode => bail!("PDU with opcode {opcode:#x}"),
            }
        }
    }

    fn done(&mut self, head: &[u8], body: &[u8]) -> Done {
        let tag = word(head, 16);
        self.exp_stat_sn = word(head, 24).wrapping_add(1);
        let sense = (head[3] == status::CHECK_CONDITION && body.len() >= 16)
            .then(|| (body[4] & 0xf, body[14], body[15]));
        Done {
            tag,
            status: head[3],
            sense,
            data: self.data.remove(&tag).unwrap_or_default(),
        }
    }

    /// Sends a command and waits for its end.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn command(&mut self, cdb: &[u8], data: &[u8], reads: u32) -> Result<Done> {
        let tag = self.send_command(cdb, data, reads)?;
        let done = self.answer()?;
        ensure!(done.tag == tag, "tag {} for {tag}", done.tag);
        Ok(done)
    }

    /// Sends a write of whole blocks of 512 bytes; its tag.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send_write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<u32> {
        let blocks = u16::try_from(data.len() / 512)?;
        let flags = if fua { 8 } else { 0 };
        let cdb = cdb10(0x2a, flags, u32::try_from(offset / 512)?, blocks);
        self.send_command(&cdb, data, 0)
    }

    /// Sends SYNCHRONIZE CACHE; its tag.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send_flush(&mut self) -> Result<u32> {
        self.send_command(&cdb10(0x35, 0, 0, 0), &[], 0)
    }

    /// Reads whole blocks of 512 bytes.
    ///
    /// # Errors
    /// When the connection is gone or the read fails.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>> {
        let blocks = u16::try_from(len / 512)?;
        let done = self.command(
            &cdb10(0x28, 0, u32::try_from(offset / 512)?, blocks),
            &[],
            len,
        )?;
        ensure!(done.is_good(), "read at {offset}: {done:?}");
        ensure!(
            done.data.len() == usize::try_from(len)?,
            "read at {offset}: short"
        );
        Ok(done.data)
    }
}
