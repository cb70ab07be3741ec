//! RECONFIGURE, retirement, who may learn of a configuration (C20).

use super::rig::{ALL, E1, E2, Rig, SECRET, refusal};
use trilith_block::{MemberSet, Membership, Term};
use trilith_wire::{Kind, Message, Reason};

fn learns() -> Membership {
    Membership {
        generation: (1 << 16) + 1,
        voters: ALL,
        next: MemberSet(0b1011),
        joint: false,
        witness: MemberSet::EMPTY,
    }
}

fn without_me() -> Membership {
    Membership {
        generation: (1 << 16) + 9,
        ..MemberSet(0b1110).into()
    }
}

fn reconfigure(rig: &mut Rig, conn: trilith_block::ConnId, config: Membership) -> u64 {
    let term = Term(1);
    let frames = rig.ask(conn, &Message::Reconfigure { term, config });
    match frames[..] {
        [(Message::ReconfigureDone { term, generation }, _)] => {
            assert_eq!(term, Term(1));
            generation
        }
        ref other => unreachable!("{other:?}"),
    }
}

#[test]
fn a_configuration_is_durable_when_it_is_answered_and_told_in_welcome() {
    let mut rig = Rig::new();
    let conn = rig.active();
    assert_eq!(reconfigure(&mut rig, conn, learns()), learns().generation);
    rig.power_cut();
    let (_, state) = rig.login(E1);
    assert_eq!(state.config, learns());
    rig.stop();
}

#[test]
fn only_the_leader_changes_a_configuration() {
    let mut rig = Rig::new();
    rig.active();
    let (other, _) = rig.login(E2);
    let (term, config) = (Term(1), learns());
    let frames = rig.ask(other, &Message::Reconfigure { term, config });
    let nack = matches!(
        frames[..],
        [(
            Message::Nack {
                reason: Reason::Term,
                refused: Kind::Reconfigure,
                ..
            },
            _
        )]
    );
    assert!(nack, "{frames:?}");
    assert_eq!(rig.state().config.generation, 1);
    rig.stop();
}

#[test]
fn an_older_configuration_is_answered_with_the_newer_one() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let joint = learns().joined(Term(1)).unwrap();
    assert_eq!(reconfigure(&mut rig, conn, joint), joint.generation);
    assert_eq!(reconfigure(&mut rig, conn, learns()), joint.generation);
    assert_eq!(rig.state().config, joint);
    rig.stop();
}

#[test]
fn a_retired_replica_serves_nobody() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let config = without_me();
    assert_eq!(reconfigure(&mut rig, conn, config), config.generation);
    let vote = rig.vote(2);
    let frames = rig.ask(conn, &Message::Vote(vote));
    let fenced = |m: &Message<'_>| {
        matches!(
            m,
            Message::Nack {
                reason: Reason::Config,
                ..
            }
        )
    };
    assert!(fenced(&frames[0].0), "{frames:?}");
    let range = trilith_block::BlockRange::new(trilith_block::Lba(0), trilith_block::Blocks(1));
    let read = Message::Read {
        term: Term(1),
        range,
        rid: 4,
    };
    let frames = rig.ask(conn, &read);
    assert!(fenced(&frames[0].0), "{frames:?}");
    let (_, answer) = rig.greet(rig.hello(E2), &SECRET);
    assert_eq!(refusal(&answer), Some(Reason::Config));
    rig.crash(true);
    let (_, answer) = rig.greet(rig.hello(E1), &SECRET);
    assert_eq!(refusal(&answer), Some(Reason::Config));
    rig.stop();
}

#[test]
fn an_engine_that_cannot_learn_a_configuration_is_turned_away() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let old = |rig: &Rig, generation| {
        let mut hello = rig.hello(E2);
        (hello.protocol_max, hello.cfg_gen) = (1, generation);
        hello
    };
    let hello = old(&rig, 1);
    let (_, answer) = rig.greet(hello, &SECRET);
    assert_eq!(refusal(&answer), None, "nothing was ever changed");
    reconfigure(&mut rig, conn, learns());
    for (generation, reason) in [(1, Reason::Config), (learns().generation, Reason::Protocol)] {
        let hello = old(&rig, generation);
        let (_, answer) = rig.greet(hello, &SECRET);
        assert_eq!(refusal(&answer), Some(reason));
    }
    let mut hello = rig.hello(E2);
    hello.cfg_gen = 1;
    let (_, answer) = rig.greet(hello, &SECRET);
    assert_eq!(refusal(&answer), None, "it is told");
    rig.stop();
}
