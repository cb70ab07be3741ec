use super::*;
use crate::frame::{Decoder, Encoder, WireError};
use crate::limits::HEADER_BYTES;
use crate::state::StateFlags;
use std::vec;
use std::vec::Vec;
use trilith_block::{BlockRange, Blocks, BufId, BufSlice, Buffers, Lba, SyncEpoch};

/// Only the checksum is used by the codec.
struct Crc;

impl Buffers for Crc {
    fn alloc(&mut self, _len: u32) -> Option<BufSlice> {
        None
    }
    fn retain(&mut self, _buf: BufId) {}
    fn release(&mut self, _buf: BufId) {}
    fn bytes(&self, _slice: BufSlice) -> &[u8] {
        &[]
    }
    fn bytes_mut(&mut self, _slice: BufSlice) -> &mut [u8] {
        &mut []
    }
    fn copy(&mut self, _source: BufSlice, _target: BufSlice) {}
    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        let mut crc = !seed;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
            }
        }
        !crc
    }
    fn available(&self) -> u64 {
        0
    }
}

fn member(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

fn state() -> ReplicaState {
    ReplicaState {
        replica: Uuid([1; 16]),
        boot: Uuid([2; 16]),
        voted_engine: Uuid([3; 16]),
        leader: Uuid([4; 16]),
        term: Term(5),
        attach_epoch: 6,
        config: Membership {
            generation: 7,
            voters: MemberSet(7),
            next: MemberSet(11),
            joint: true,
            witness: MemberSet::EMPTY,
        },
        se: SyncEpoch {
            term: Term(8),
            n: 9,
        },
        iss: MemberSet(7),
        trk: MemberSet(3),
        loss: 10,
        w: Idx(11),
        upto: Idx(12),
        tidx: Idx(13),
        max_idx: Idx(14),
        capacity: 1 << 30,
        free_extents: 15,
        credit_entries: 16,
        credit_bytes: 17,
        member: member(2),
        flags: StateFlags {
            tainted: true,
            need: true,
            ..StateFlags::default()
        },
        lease_left_ms: 18,
        window_count: 19,
    }
}

/// One message of each kind, with the length of its payload.
fn all() -> Vec<(Message<'static>, u32)> {
    let term = Term(77);
    let idx = Idx(1234);
    let range = BlockRange::new(Lba(1022), Blocks(2));
    let crcs: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8];
    let vote = Prevote {
        term,
        attach_epoch: 2,
        cfg_gen: 3,
        release_lease_of: Uuid([9; 16]),
    };
    let hello = Hello {
        volume: Uuid([1; 16]),
        engine: Uuid([2; 16]),
        supersedes: Uuid([3; 16]),
        nonce: [4; 32],
        term,
        attach_epoch: 5,
        protocol_min: 1,
        protocol_max: 2,
        loss: 6,
        cfg_gen: 7,
        capacity: 8 << 20,
        member: member(1),
    };
    let append = Append {
        term,
        idx,
        op: EntryOp::Write,
        range,
        skip: MemberSet(4),
        header_only: false,
        resend: true,
        tidx: Idx(1000),
        sent_at: 99,
        crcs,
    };
    let status = EntryStatus::Io;
    vec![
        (Message::Hello(hello), 0),
        (
            Message::Challenge {
                protocol: 1,
                replica: Uuid([7; 16]),
                nonce: [8; 32],
                proof: [9; 32],
            },
            0,
        ),
        (Message::Auth { proof: [5; 32] }, 0),
        (Message::Welcome(state()), 0),
        (
            Message::Refused {
                reason: Reason::Secret,
                term,
                attach_epoch: 1,
                detail: 2,
            },
            0,
        ),
        (Message::Prevote(vote), 0),
        (
            Message::PrevoteReply {
                refused: Some(Reason::LeaderAlive),
                term,
                attach_epoch: 3,
                lease_left_ms: 4,
            },
            0,
        ),
        (Message::Vote(vote), 0),
        (
            Message::Promise {
                term,
                state: state(),
            },
            0,
        ),
        (
            Message::Nack {
                reason: Reason::Term,
                refused: Kind::Append,
                term,
                attach_epoch: 1,
                idx,
                tag: 5,
            },
            0,
        ),
        (
            Message::GetMap {
                term,
                map: MapKind::Dirty,
                member: member(3),
                from: 77,
            },
            0,
        ),
        (
            Message::Map {
                term,
                map: MapKind::Need,
                member: member(0),
                last: true,
                next: 9,
                crc: 0xdead_beef,
            },
            32,
        ),
        (Message::Reconcile { term, loss: 3 }, 0),
        (Message::ReconcileDone { term }, 0),
        (
            Message::Repair {
                term,
                range,
                tag: 8,
                zero: false,
                rebuild: true,
                crcs,
            },
            8192,
        ),
        (
            Message::Repair {
                term,
                range,
                tag: 8,
                zero: true,
                rebuild: false,
                crcs: &[],
            },
            0,
        ),
        (
            Message::RepairDone {
                term,
                tag: 8,
                status,
            },
            0,
        ),
        (
            Message::TermStart {
                term,
                start: idx,
                iss: MemberSet(3),
                loss: 1,
            },
            0,
        ),
        (Message::TermStartDone { term, start: idx }, 0),
        (Message::Opened { term }, 0),
        (Message::Append(append), 8192),
        (
            Message::Append(Append {
                op: EntryOp::Discard,
                crcs: &[],
                ..append
            }),
            0,
        ),
        (
            Message::Append(Append {
                header_only: true,
                crcs: &[],
                ..append
            }),
            0,
        ),
        (
            Message::Ack {
                term,
                upto: idx,
                free_extents: 1,
                credit_entries: 2,
                credit_bytes: 3,
                w: Idx(4),
                echo: 5,
                further: &[1, 0, 0, 0, 0, 0, 0, 0],
            },
            0,
        ),
        (Message::EntryFailed { term, idx, status }, 0),
        (
            Message::Flush {
                term,
                idx,
                tidx: Idx(2),
                sent_at: 3,
            },
            0,
        ),
        (Message::FlushDone { term, idx }, 0),
        (
            Message::SyncSet {
                term,
                idx,
                n: 2,
                iss: MemberSet(3),
                trk: MemberSet(7),
                tidx: Idx(9),
                join: Some(member(2)),
            },
            0,
        ),
        (Message::SyncSetDone { term, idx, n: 2 }, 0),
        (
            Message::Read {
                term,
                range,
                rid: 6,
            },
            0,
        ),
        (
            Message::Data {
                term,
                rid: 6,
                status: EntryStatus::Done,
                range,
                zero: false,
                crcs,
            },
            8192,
        ),
        (
            Message::Data {
                term,
                rid: 6,
                status,
                range,
                zero: false,
                crcs: &[],
            },
            0,
        ),
        (
            Message::ExtentHash {
                term,
                range,
                rid: 6,
                unit: Blocks(1),
                seed: 7,
            },
            0,
        ),
        (
            Message::ExtentHashDone {
                term,
                rid: 6,
                status: EntryStatus::Done,
                range,
                unit: Blocks(1),
                digests: &[3; 32],
            },
            0,
        ),
        (
            Message::ExtentHashDone {
                term,
                rid: 6,
                status,
                range,
                unit: Blocks(1),
                digests: &[],
            },
            0,
        ),
        (
            Message::Heartbeat {
                term,
                commit: idx,
                tidx: Idx(3),
                sent_at: 4,
            },
            0,
        ),
        (
            Message::HeartbeatDone {
                term,
                upto: idx,
                free_extents: 1,
                w: Idx(3),
                echo: 4,
            },
            0,
        ),
        (
            Message::Told {
                term,
                n: 3,
                iss: MemberSet(3),
                trk: MemberSet(7),
                start: idx,
            },
            0,
        ),
        (Message::ToldDone { term }, 0),
        (Message::NeedSet { term }, 0),
        (Message::NeedSetDone { term }, 0),
        (
            Message::DirtyClear {
                term,
                member: member(1),
                crc: 5,
            },
            16,
        ),
        (Message::Seal { term, idx }, 0),
        (Message::SealDone { term, sealed: true }, 0),
        (Message::StepDown { term }, 0),
        (
            Message::Reconfigure {
                term,
                config: Membership {
                    generation: 0x70001,
                    voters: MemberSet(7),
                    next: MemberSet(11),
                    joint: true,
                    witness: MemberSet::EMPTY,
                },
            },
            0,
        ),
        (
            Message::Reconfigure {
                term,
                config: Membership {
                    generation: 0x70002,
                    witness: MemberSet(4),
                    ..MemberSet(7).into()
                },
            },
            0,
        ),
        (
            Message::Welcome(ReplicaState {
                config: Membership {
                    generation: 1,
                    witness: MemberSet(2),
                    ..MemberSet(7).into()
                },
                ..state()
            }),
            0,
        ),
        (
            Message::ReconfigureDone {
                term,
                generation: 0x70001,
            },
            0,
        ),
    ]
}

fn decode(bytes: &[u8]) -> Result<(Decoder, usize), WireError> {
    let mut decoder = Decoder::new();
    let mut at = 0;
    loop {
        let want = decoder.want();
        let Some(next) = bytes.get(at..at + want) else {
            return Err(WireError::Magic(0));
        };
        at += want;
        if decoder.feed(next, &Crc)? {
            return Ok((decoder, at));
        }
    }
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    let mut encoder = Encoder::new();
    let mut seen = vec![];
    for (message, payload_len) in all() {
        let head = encoder.head(&message, payload_len, &Crc).to_vec();
        assert!(head.len() >= HEADER_BYTES);
        let (decoder, used) = decode(&head).unwrap();
        assert_eq!(used, head.len());
        assert_eq!(decoder.payload_len(), payload_len);
        assert_eq!(decoder.message().unwrap(), message);
        seen.push(message.kind());
    }
    for kind in Kind::ALL {
        assert!(seen.contains(kind), "{kind:?} is not covered");
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let mut encoder = Encoder::new();
    for (message, payload_len) in all() {
        let head = encoder.head(&message, payload_len, &Crc).to_vec();
        for bit in 0..head.len() * 8 {
            let mut bad = head.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let outcome = decode(&bad);
            assert!(outcome.is_err(), "{message:?}: bit {bit} went unnoticed");
        }
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_an_error() {
    let mut encoder = Encoder::new();
    for (voters, next, joint, witness) in [
        (0, 0, false, 0),
        (7, 0, true, 0),
        (7, 7, false, 0),
        (7, 0b111_000, true, 0),
        (7, 3, false, 0),
        (7, 0, false, 3),
        (7, 0, false, 8),
        (3, 0, false, 2),
        (7, 11, false, 4),
    ] {
        let config = Membership {
            generation: 9,
            voters: MemberSet(voters),
            next: MemberSet(next),
            joint,
            witness: MemberSet(witness),
        };
        let term = Term(1);
        let message = Message::Reconfigure { term, config };
        let head = encoder.head(&message, 0, &Crc).to_vec();
        assert!(decode(&head).unwrap().0.message().is_err(), "{config:?}");
        let welcome = Message::Welcome(ReplicaState { config, ..state() });
        let head = encoder.head(&welcome, 0, &Crc).to_vec();
        assert!(decode(&head).unwrap().0.message().is_err(), "{config:?}");
    }
}

#[test]
fn a_payload_that_does_not_fit_its_frame_is_an_error() {
    let mut encoder = Encoder::new();
    let heartbeat = Message::Heartbeat {
        term: Term(1),
        commit: Idx(0),
        tidx: Idx(0),
        sent_at: 0,
    };
    let head = encoder.head(&heartbeat, 4096, &Crc).to_vec();
    assert!(matches!(
        decode(&head),
        Err(WireError::PayloadLength { .. })
    ));
    for (message, payload_len) in all() {
        if let Message::Append(_) | Message::Repair { .. } | Message::Data { .. } = message {
            let head = encoder.head(&message, payload_len ^ 4096, &Crc).to_vec();
            let decoded = decode(&head).and_then(|(d, _)| d.message().map(|_| ()));
            assert!(
                matches!(decoded, Err(WireError::PayloadLength { .. })),
                "{message:?}"
            );
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_input_panics(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        kind in 0u8..64,
    ) {
        let mut bytes = bytes;
        bytes.resize(bytes.len().max(HEADER_BYTES), 0);
        bytes[0..2].copy_from_slice(&crate::frame::MAGIC.to_le_bytes());
        bytes[2] = crate::frame::VERSION;
        bytes[3] = kind;
        let ext = (bytes.len() - HEADER_BYTES) / 8;
        bytes[6..8].copy_from_slice(&u16::try_from(ext).unwrap().to_le_bytes());
        bytes[8..12].fill(0);
        bytes[12..16].fill(0);
        bytes.truncate(HEADER_BYTES + ext * 8);
        let crc = Crc.crc32c(0, &bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        if let Ok((decoder, _)) = decode(&bytes) {
            core::hint::black_box(decoder.message().is_ok());
        }
    }
}

#[test]
fn proofs_differ_by_role_and_by_every_bound_value() {
    use crate::auth::{Binding, Role, proof, verify};
    let secret = [7; 32];
    let binding = Binding {
        engine_nonce: [1; 32],
        replica_nonce: [2; 32],
        volume: Uuid([3; 16]),
        engine: Uuid([4; 16]),
        replica: Uuid([5; 16]),
        protocol: 1,
    };
    let good = proof(&secret, Role::Engine, &binding);
    assert!(verify(&secret, Role::Engine, &binding, &good));
    assert!(!verify(&secret, Role::Replica, &binding, &good));
    assert!(!verify(&[8; 32], Role::Engine, &binding, &good));
    for other in [
        Binding {
            engine_nonce: [9; 32],
            ..binding
        },
        Binding {
            replica_nonce: [9; 32],
            ..binding
        },
        Binding {
            volume: Uuid([9; 16]),
            ..binding
        },
        Binding {
            engine: Uuid([9; 16]),
            ..binding
        },
        Binding {
            replica: Uuid([9; 16]),
            ..binding
        },
        Binding {
            protocol: 2,
            ..binding
        },
    ] {
        assert!(!verify(&secret, Role::Engine, &other, &good));
    }
}
