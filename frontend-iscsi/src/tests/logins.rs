//! Login, discovery and the end of sessions.

use super::client::{Client, NAME, answers, login_request, pairs, text, world};
use crate::chap::{Algorithm, decode, encode};
use crate::config::{ChapConfig, ChapUser};
use crate::fuzz::World;
use core::time::Duration;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

/// Status class and detail of a login with these keys.
fn status_of(world: &mut World, current: u8, keys: &[(&str, &str)]) -> (u8, u8) {
    let conn = 1 + world.target.status().connections_accepted;
    world.open(conn);
    world.push(conn, &login_request(current, Some(3), 9, &text(keys)));
    let list = answers(&world.sent(conn), false);
    let status = (list[0].head[36], list[0].head[37]);
    assert_eq!(
        status == (0, 0),
        world.is_open(conn),
        "closed when it failed"
    );
    status
}

const TARGET: (&str, &str) = ("TargetName", "iqn.2026-11.io.trilith:test");
const INITIATOR: (&str, &str) = ("InitiatorName", NAME);

#[test]
fn wrong_logins_get_the_status_of_the_rfc() {
    let mut world = world(|config| config.initiators = vec![NAME.to_string()]);
    for (keys, expected) in [
        (vec![INITIATOR, TARGET], (0, 0)),
        (vec![TARGET], (2, 7)),
        (vec![INITIATOR], (2, 7)),
        (
            vec![INITIATOR, ("TargetName", "iqn.2026-11.io.trilith:other")],
            (2, 3),
        ),
        (
            vec![("InitiatorName", "iqn.2026-11.io.trilith:evil"), TARGET],
            (2, 2),
        ),
        (vec![("InitiatorName", "nobody"), TARGET], (2, 0)),
        (vec![INITIATOR, TARGET, ("SessionType", "Strange")], (2, 9)),
        (vec![INITIATOR, TARGET, ("MaxBurstLength", "1")], (2, 0)),
        (
            vec![INITIATOR, TARGET, ("TargetAddress", "1.2.3.4")],
            (2, 0),
        ),
    ] {
        assert_eq!(status_of(&mut world, 1, &keys), expected, "{keys:?}");
    }
    world.end();
}

#[test]
fn a_version_or_a_stage_that_does_not_exist_is_refused() {
    let mut world = world(|_| {});
    let mut request = login_request(1, Some(3), 1, &text(&[INITIATOR, TARGET]));
    request[3] = 1;
    world.open(1);
    world.push(1, &request);
    assert_eq!(answers(&world.sent(1), false)[0].head[36..38], [2, 5]);
    for (current, next) in [(2, Some(3)), (1, Some(1)), (0, Some(2)), (3, None)] {
        world.open(7);
        world.push(
            7,
            &login_request(current, next, 1, &text(&[INITIATOR, TARGET])),
        );
        assert_eq!(answers(&world.sent(7), false)[0].head[36..38], [2, 0xb]);
        world.hang_up(7);
    }
    world.end();
}

#[test]
fn keys_are_answered_and_unknown_ones_not_understood() {
    let mut world = world(|_| {});
    world.open(1);
    let keys = text(&[
        INITIATOR,
        TARGET,
        ("HeaderDigest", "None"),
        ("X-com.acme.hop", "1"),
    ]);
    world.push(1, &login_request(1, Some(3), 1, &keys));
    let list = answers(&world.sent(1), false);
    let answer = pairs(&list[0].body);
    let expected = [
        ("TargetPortalGroupTag", "1"),
        ("TargetAlias", "test"),
        ("HeaderDigest", "None"),
        ("X-com.acme.hop", "NotUnderstood"),
        ("MaxRecvDataSegmentLength", "1048576"),
    ];
    let expected: Vec<(String, String)> = expected
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    assert_eq!(answer, expected);
    assert_ne!(&list[0].head[14..16], &[0, 0], "a session handle");
    world.end();
}

#[test]
fn text_over_several_requests_is_put_together() {
    let mut world = world(|_| {});
    world.open(1);
    let keys = text(&[INITIATOR, TARGET, ("InitialR2T", "No")]);
    let (first, second) = keys.split_at(50);
    let mut part = login_request(1, None, 1, first);
    part[1] |= 0x40;
    world.push(1, &part);
    let list = answers(&world.sent(1), false);
    assert_eq!(
        (list[0].head[1], list[0].body.len()),
        (4, 0),
        "empty, no transition"
    );
    world.push(1, &login_request(1, Some(3), 1, second));
    let list = answers(&world.sent(1), false);
    assert_eq!(
        (list[0].head[1], &list[0].head[36..38]),
        (0x87, &[0, 0][..])
    );
    world.end();
}

fn chap(target: bool) -> ChapConfig {
    let user = |name: &str, secret: &str| ChapUser {
        name: name.into(),
        secret: secret.into(),
    };
    ChapConfig {
        initiators: vec![user("alice", "alices secret 1")],
        target: target.then(|| user("disk", "the disks secret")),
    }
}

/// Runs CHAP; returns the last answer's status and keys.
fn prove(
    world: &mut World,
    algorithm: (Algorithm, &str),
    secret: &str,
    mutual: Option<&str>,
) -> ((u8, u8), Vec<(String, String)>) {
    let conn = 1 + world.target.status().connections_accepted;
    world.open(conn);
    let first = text(&[INITIATOR, TARGET, ("AuthMethod", "KRB5,CHAP")]);
    world.push(conn, &login_request(0, Some(1), 1, &first));
    let list = answers(&world.sent(conn), false);
    assert_eq!(list[0].head[1], 0, "no way on without proof");
    world.push(
        conn,
        &login_request(0, None, 1, &text(&[("CHAP_A", algorithm.1)])),
    );
    let list = answers(&world.sent(conn), false);
    let asked = pairs(&list[0].body);
    let find = |key: &str| asked.iter().find(|(k, _)| k == key).unwrap().1.clone();
    assert_eq!(find("CHAP_A"), algorithm.0.name());
    let challenge = decode(&find("CHAP_C")).unwrap();
    let id = find("CHAP_I").parse().unwrap();
    let response = encode(&algorithm.0.response(id, secret.as_bytes(), &challenge));
    let mut keys = vec![("CHAP_N", "alice"), ("CHAP_R", response.as_str())];
    if let Some(challenge) = mutual {
        keys.extend([("CHAP_I", "7"), ("CHAP_C", challenge)]);
    }
    let reflected = encode(&challenge);
    if mutual == Some("reflect") {
        keys.pop();
        keys.push(("CHAP_C", reflected.as_str()));
    }
    world.push(conn, &login_request(0, Some(3), 1, &text(&keys)));
    let list = answers(&world.sent(conn), false);
    let last = list.last().unwrap();
    ((last.head[36], last.head[37]), pairs(&last.body))
}

#[test]
fn chap_proves_initiators_with_every_algorithm() {
    let mut world = world(|config| config.chap = Some(chap(true)));
    for algorithm in [
        (Algorithm::Md5, "5"),
        (Algorithm::Sha1, "6,5"),
        (Algorithm::Sha256, "99,7,5"),
        (Algorithm::Sha3, "8"),
    ] {
        assert_eq!(
            prove(&mut world, algorithm, "alices secret 1", None).0,
            (0, 0)
        );
        assert_eq!(
            prove(&mut world, algorithm, "alices secret 2", None).0,
            (2, 1)
        );
        let (status, keys) = prove(&mut world, algorithm, "alices secret 1", Some("0x0102"));
        assert_eq!(status, (0, 0));
        let expected = encode(&algorithm.0.response(7, b"the disks secret", &[1, 2]));
        assert!(keys.contains(&("CHAP_R".into(), expected)), "{keys:?}");
    }
    let reflected = prove(
        &mut world,
        (Algorithm::Md5, "5"),
        "alices secret 1",
        Some("reflect"),
    );
    assert_eq!(reflected.0, (2, 1), "a reflected challenge");
    assert_eq!(world.target.status().logins_denied, 5);
    world.end();
}

#[test]
fn nobody_gets_past_chap_without_it() {
    let mut world = world(|config| config.chap = Some(chap(false)));
    assert_eq!(status_of(&mut world, 1, &[INITIATOR, TARGET]), (2, 1));
    assert_eq!(status_of(&mut world, 0, &[INITIATOR, TARGET]), (2, 1));
    let none = [INITIATOR, TARGET, ("AuthMethod", "None")];
    assert_eq!(status_of(&mut world, 0, &none), (2, 1));
    let discovery = [INITIATOR, ("SessionType", "Discovery")];
    assert_eq!(status_of(&mut world, 1, &discovery), (2, 1));
    let forged = [INITIATOR, TARGET, ("CHAP_N", "alice"), ("CHAP_R", "0x00")];
    assert_eq!(status_of(&mut world, 0, &forged), (2, 0));
    let mutual = prove(
        &mut world,
        (Algorithm::Md5, "5"),
        "alices secret 1",
        Some("0x01"),
    );
    assert_eq!(mutual.0, (2, 1), "we cannot prove who we are");
    world.end();
}

#[test]
fn secrets_are_not_printed() {
    let world = world(|config| config.chap = Some(chap(true)));
    let text = std::format!("{:?}", world.target);
    assert!(text.contains("alice"));
    assert!(
        !text.contains("secret 1") && !text.contains("97, 108, 105"),
        "{text}"
    );
}

fn text_request(body: &[u8]) -> Vec<u8> {
    let mut head = [0; 48];
    head[0] = 0x44;
    head[1] = 0x80;
    head[19] = 5;
    head[20..24].fill(0xff);
    crate::fuzz::pdu(head, body)
}

#[test]
fn discovery_tells_the_target_and_its_portals() {
    let mut world = world(|_| {});
    world.open(1);
    let keys = text(&[INITIATOR, ("SessionType", "Discovery")]);
    world.push(1, &login_request(1, Some(3), 1, &keys));
    assert_eq!(answers(&world.sent(1), false)[0].head[36..38], [0, 0]);
    let told = [
        (
            "TargetName".to_string(),
            "iqn.2026-11.io.trilith:test".to_string(),
        ),
        ("TargetAddress".to_string(), "192.0.2.1:3260,1".to_string()),
        (
            "TargetAddress".to_string(),
            "[2001:db8::1]:3260,1".to_string(),
        ),
    ];
    for (value, expected) in [
        ("All", &told[..]),
        ("iqn.2026-11.io.trilith:test", &told[..]),
        ("iqn.2026-11.io.trilith:other", &[]),
    ] {
        world.push(1, &text_request(&text(&[("SendTargets", value)])));
        let list = answers(&world.sent(1), false);
        assert_eq!(
            (list[0].opcode(), pairs(&list[0].body)),
            (0x24, expected.to_vec())
        );
    }
    // A SCSI command has no place in a discovery session.
    let mut head = [0; 48];
    head[0] = 0x41;
    world.push(1, &crate::fuzz::pdu(head, &[]));
    assert_eq!(answers(&world.sent(1), false)[0].opcode(), 0x3f);
    world.end();
}

#[test]
fn a_normal_session_asks_for_its_own_target_only() {
    let mut world = world(|_| {});
    let client = Client::ready(&mut world, 1, 1);
    world.push(1, &text_request(&text(&[("SendTargets", "")])));
    assert_eq!(pairs(&client.take(&mut world)[0].body).len(), 3);
    world.push(1, &text_request(&text(&[("SendTargets", "All")])));
    let answer = client.take(&mut world);
    assert_eq!(
        pairs(&answer[0].body),
        [("SendTargets".into(), "Reject".into())]
    );
    world.end();
}

#[test]
fn the_same_port_again_ends_the_old_session() {
    let mut world = world(|_| {});
    let mut old = Client::ready(&mut world, 1, 1);
    let head = old.command(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0xc0, 512);
    old.push(&mut world, head, &[]);
    assert_eq!(world.pending.len(), 1);
    let mut other = Client::ready(&mut world, 2, 2);
    let mut new = Client::ready(&mut world, 3, 1);
    assert!(!world.is_open(1), "the old connection");
    assert!(world.is_open(2), "another port");
    world.complete_all();
    assert_eq!(new.run(&mut world, &[0; 6], 0, &[]).status, 0);
    assert_eq!(other.run(&mut world, &[0; 6], 0, &[]).status, 0);
    world.end();
}

#[test]
fn the_same_connection_again_goes_on_with_the_session() {
    let mut world = world(|_| {});
    world.open(1);
    world.push(
        1,
        &login_request(1, Some(3), 1, &text(&[INITIATOR, TARGET])),
    );
    let tsih = answers(&world.sent(1), false)[0].head[15];
    for (cid, handle, expected) in [
        (1, tsih, [2, 6]),
        (0, tsih + 1, [2, 0xa]),
        (0, tsih, [0, 0]),
    ] {
        let mut request = login_request(1, Some(3), 1, &text(&[INITIATOR, TARGET]));
        request[15] = handle;
        request[21] = cid;
        let conn = 1 + world.target.status().connections_accepted;
        world.open(conn);
        world.push(conn, &request);
        let list = answers(&world.sent(conn), false);
        assert_eq!(list[0].head[36..38], expected);
    }
    assert!(!world.is_open(1));
    assert_eq!(world.target.status().sessions, 1);
    world.end();
}

#[test]
fn logout_is_answered_before_the_close() {
    let mut world = world(|_| {});
    for (why, cid, answer, open) in [(2, 0, 2, true), (1, 5, 1, true), (1, 0, 0, false)] {
        let conn = 1 + world.target.status().connections_accepted;
        let client = Client::ready(&mut world, conn, 1);
        let mut head = [0; 48];
        head[0] = 0x46;
        head[1] = 0x80 | why;
        head[21] = cid;
        client.push(&mut world, head, &[]);
        let list = client.take(&mut world);
        assert_eq!((list[0].opcode(), list[0].head[2]), (0x26, answer));
        assert_eq!(world.is_open(conn), open);
    }
    world.end();
}

#[test]
fn silent_initiators_are_asked_and_then_closed() {
    let mut world = world(|_| {});
    let client = Client::ready(&mut world, 1, 1);
    world.now = world.now.after(Duration::from_secs(31));
    world.settle();
    let ping = client.take(&mut world);
    assert_eq!((ping[0].opcode(), ping[0].word(16)), (0x20, u32::MAX));
    let mut head = [0; 48];
    head[0] = 0x40;
    head[1] = 0x80;
    head[16..20].fill(0xff);
    head[20..24].copy_from_slice(&ping[0].head[20..24]);
    client.push(&mut world, head, &[]);
    assert!(
        client.take(&mut world).is_empty(),
        "an answer gets no answer"
    );
    // Asked again after 30 s. An initiator that sleeps for a minute is not gone.
    for seconds in [31, 31] {
        world.now = world.now.after(Duration::from_secs(seconds));
        world.settle();
        assert!(world.is_open(1));
    }
    world.now = world.now.after(Duration::from_secs(30));
    world.settle();
    assert!(!world.is_open(1), "no answer");
    world.end();
}

#[test]
fn the_end_of_service_is_told() {
    let mut world = world(|_| {});
    let mut busy = Client::ready(&mut world, 1, 1);
    let idle = Client::ready(&mut world, 2, 2);
    let head = busy.command(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0xc0, 512);
    busy.push(&mut world, head, &[]);
    world.event(trilith_block::FrontendEvent::Serving(false));
    assert_eq!(idle.take(&mut world)[0].opcode(), 0x32);
    assert!(!world.is_open(2), "nothing to do");
    assert!(world.is_open(1), "a read in flight");
    world.complete_all();
    let list = busy.take(&mut world);
    assert_eq!(
        list.iter().map(|a| a.opcode()).collect::<Vec<_>>(),
        [0x32, 0x25]
    );
    assert!(!world.is_open(1));
    world.open(9);
    assert!(!world.is_open(9), "no new connections");
    world.end();
}
