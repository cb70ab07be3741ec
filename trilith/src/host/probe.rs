//! Asks replicas for the highest attach epoch that they know (M11), by blocking sockets, before an
//! engine that takes over is made. It opens a session as any engine does, reads the answer and
//! closes; it votes for nothing and changes nothing.

use crate::limits::DIAL_TIME_MAX;
use anyhow::{Context, bail, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use trilith_block::{MemberId, Term, Uuid};
use trilith_engine::EngineConfig;
use trilith_runtime::{Address, Arena, ArenaConfig};
use trilith_wire::auth::{Binding, Role, proof, verify};
use trilith_wire::limits::{HEAD_BYTES_MAX, PROTOCOL_MAX, PROTOCOL_MIN};
use trilith_wire::{Decoder, Encoder, Hello, Message};

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// The highest attach epoch that a majority of the members, at least, tells.
///
/// # Errors
/// When no majority answers.
pub(crate) fn highest_attach_epoch(
    config: &EngineConfig,
    members: &[(usize, Address)],
) -> anyhow::Result<u64> {
    let mut highest = 0;
    let mut answers = 0;
    for (member, address) in members {
        match attach_epoch(config, *member, address) {
            Ok(epoch) => {
                highest = highest.max(epoch);
                answers += 1;
            }
            Err(error) => tracing::warn!(member, %address, "cannot ask: {error:#}"),
        }
    }
    ensure!(
        answers >= config.majority(),
        "take over: expected {} replicas to answer, found {answers}",
        config.majority()
    );
    Ok(highest)
}

fn dial(address: &Address) -> std::io::Result<Box<dyn Stream>> {
    let limit = Some(DIAL_TIME_MAX);
    Ok(match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(limit)?;
            stream.set_write_timeout(limit)?;
            Box::new(stream)
        }
        Address::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, DIAL_TIME_MAX)?;
            stream.set_read_timeout(limit)?;
            stream.set_write_timeout(limit)?;
            Box::new(stream)
        }
    })
}

fn attach_epoch(config: &EngineConfig, member: usize, address: &Address) -> anyhow::Result<u64> {
    let stream = dial(address)?;
    let mut nonce = [0; 32];
    trilith_runtime::random_bytes(&mut nonce)?;
    // An identity of its own: a session of the engine itself would be replaced by this one.
    let engine = crate::host::process::new_uuid()?;
    let hello = Hello {
        volume: config.volume,
        engine,
        supersedes: Uuid::NONE,
        nonce,
        term: Term(0),
        attach_epoch: u64::MAX,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        loss: 0,
        cfg_gen: config.cfg_gen,
        capacity: 0,
        member: MemberId::new(member).context("expected a lower member number")?,
    };
    let mut session = Session::new(stream)?;
    session.send(&Message::Hello(hello))?;
    let answer = session.receive(|message| match message {
        Message::Challenge {
            protocol,
            replica,
            nonce: theirs,
            proof: found,
        } => {
            let binding = Binding {
                engine_nonce: nonce,
                replica_nonce: theirs,
                volume: config.volume,
                engine,
                replica,
                protocol,
            };
            let known = verify(&config.secret, Role::Replica, &binding, &found);
            ensure!(known, "expected the same secret");
            Ok(proof(&config.secret, Role::Engine, &binding))
        }
        Message::Refused { reason, .. } => bail!("refused: {reason:?}"),
        other => bail!("expected a challenge, found {:?}", other.kind()),
    })?;
    session.send(&Message::Auth { proof: answer })?;
    session.receive(|message| match message {
        Message::Welcome(state) => Ok(state.attach_epoch),
        Message::Refused { reason, .. } => bail!("refused: {reason:?}"),
        other => bail!("expected a welcome, found {:?}", other.kind()),
    })
}

/// Frames over a blocking stream.
struct Session {
    stream: Box<dyn Stream>,
    arena: Arena,
    encoder: Encoder,
    decoder: Decoder,
}

impl Session {
    fn new(stream: Box<dyn Stream>) -> anyhow::Result<Session> {
        // The arena only computes checksums here; its memory is never touched.
        let arena = Arena::new(ArenaConfig {
            budget_bytes: 1 << 20,
            huge_pages: false,
        })?;
        Ok(Session {
            stream,
            arena,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
        })
    }

    fn send(&mut self, message: &Message<'_>) -> anyhow::Result<()> {
        let head = self.encoder.head(message, 0, &self.arena);
        self.stream.write_all(head).context("send")
    }

    fn receive<T>(
        &mut self,
        use_it: impl FnOnce(Message<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.decoder.reset();
        let mut bytes = [0; HEAD_BYTES_MAX];
        loop {
            let wanted = self.decoder.want();
            let bytes = bytes
                .get_mut(..wanted)
                .context("expected a shorter frame")?;
            self.stream.read_exact(bytes).context("receive")?;
            if self.decoder.feed(bytes, &self.arena)? {
                return use_it(self.decoder.message()?);
            }
        }
    }
}
