//! Good volumes pass, each kind of lie is found.

use super::*;

struct Client {
    history: History,
}

impl Client {
    fn new() -> Client {
        Client {
            history: History::new(),
        }
    }

    fn write(&mut self, offset: u64, len: u64) -> Value {
        let value = self.history.invoke(Action::Write, offset, len, false);
        self.history.respond(value, None).unwrap();
        value
    }

    fn flush(&mut self) {
        let flush = self.history.invoke(Action::Flush, 0, 0, false);
        self.history.respond(flush, None).unwrap();
    }

    fn read(&mut self, offset: u64, len: u64, value: Value) {
        let read = self.history.invoke(Action::Read, offset, len, false);
        let mut bytes = vec![0; len as usize];
        stamp(value, offset, &mut bytes);
        self.history.respond(read, Some(&bytes)).unwrap();
    }
}

#[test]
fn stamps_name_their_write_and_their_place() {
    let mut bytes = vec![0; 64];
    stamp(7, 4096, &mut bytes[..32]);
    assert_eq!(
        read_stamps(4096, &bytes),
        Ok(vec![(4096, 32, 7), (4128, 32, 0)])
    );
    assert!(read_stamps(8192, &bytes).is_err(), "misplaced");
    bytes[3] ^= 1;
    assert_eq!(read_stamps(4096, &bytes).unwrap_err().0, 4096);
}

#[test]
fn a_partly_overwritten_block_is_several_registers() {
    let mut client = Client::new();
    let first = client.write(0, 8192);
    let second = client.write(512, 1024);
    client.read(0, 512, first);
    client.read(512, 1024, second);
    client.read(4096, 4096, first);
    assert_eq!(client.history.check(), Ok(()));
    client.read(1024, 512, first);
    let fault = client.history.check().unwrap_err();
    assert_eq!((fault.offset, fault.len, fault.epoch), (1024, 512, 0));
}

#[test]
fn after_a_loss_an_unflushed_value_may_be_old_or_new_but_not_both() {
    for (found, then, fine) in [(1, 1, true), (2, 2, true), (0, 0, false), (1, 2, false)] {
        let mut client = Client::new();
        assert_eq!(client.write(0, 4096), 1);
        client.flush();
        let newer = client.write(0, 4096);
        client.history.lose();
        let value = |n| if n == 2 { newer } else { n };
        client.read(0, 4096, value(found));
        client.read(0, 4096, value(then));
        assert_eq!(client.history.check().is_ok(), fine, "{found} then {then}");
    }
}

#[test]
fn a_flushed_value_may_not_be_lost_even_over_two_losses() {
    let mut client = Client::new();
    let old = client.write(0, 4096);
    let new = client.write(0, 4096);
    client.flush();
    client.history.lose();
    client.history.lose();
    client.read(0, 4096, old);
    let fault = client.history.check().unwrap_err();
    assert_eq!(
        fault.what,
        What::FlushLost {
            found: old,
            covered: new
        }
    );
}

#[test]
fn what_was_read_after_a_loss_does_not_go_back_at_the_next_one_and_no_flush_is_blamed() {
    let mut client = Client::new();
    let old = client.write(0, 4096);
    let new = client.write(0, 4096);
    client.history.lose();
    client.read(0, 4096, new);
    client.history.lose();
    client.read(0, 4096, old);
    let fault = client.history.check().unwrap_err();
    assert_eq!(
        fault.what,
        What::WentBack {
            found: old,
            newest: new
        }
    );
}

#[test]
fn a_write_without_an_answer_that_was_read_and_flushed_stays() {
    let mut client = Client::new();
    let old = client.write(0, 4096);
    let open = client.history.invoke(Action::Write, 0, 4096, false);
    client.read(0, 4096, open);
    client.flush();
    client.history.lose();
    client.read(0, 4096, old);
    assert!(client.history.check().is_err());
}

#[test]
fn zeroes_over_a_flushed_write_are_a_loss() {
    let mut client = Client::new();
    client.write(0, 4096);
    client.flush();
    client.history.lose();
    client.read(0, 4096, 0);
    assert!(client.history.check().is_err());
}

/// Simulator seed 4298: a FUA write is durable; what was written over it meanwhile need not be.
#[test]
fn what_may_be_durable_in_place_of_a_write_is_what_may_come_after_it() {
    let mut client = Client::new();
    let old = client.write(0, BLOCK);
    let fua = client.history.invoke(Action::Write, 0, BLOCK, true);
    let meanwhile = client.write(0, BLOCK);
    let later = client.write(0, BLOCK);
    client.history.respond(fua, None).unwrap();
    let since = client.history.entries()[fua as usize].invoked;
    let good = client.history.acceptable_since(0, since).unwrap();
    assert_eq!(good, [fua, meanwhile, later]);
    assert!(!good.contains(&old));
    // A read that starts now finds neither the old value nor the overwritten one.
    let now = client.history.instant();
    assert_eq!(client.history.acceptable(0, now).unwrap(), [fua, later]);
}

#[test]
fn a_swap_puts_its_bytes_where_it_found_what_it_expected_and_nowhere_else() {
    let mut client = Client::new();
    let first = client.write(0, 4096);
    let mut known = vec![0; 4096];
    stamp(first, 0, &mut known);
    let swap = client.history.invoke_swap(0, false, &known);
    client.history.respond(swap, None).unwrap();
    client.read(0, 4096, swap);
    // The same again cannot be: it finds the first swap, at its first byte.
    let again = client.history.invoke_swap(0, false, &known);
    client.history.respond_differs(again, 0);
    client.read(0, 4096, swap);
    assert_eq!(client.history.check(), Ok(()));
    let wrong = client.history.invoke_swap(0, false, &known);
    client.history.respond(wrong, None).unwrap();
    assert!(client.history.check().is_err());
}

#[test]
fn what_was_aborted_does_not_show_up_later() {
    let mut client = Client::new();
    let aborted = client.history.invoke(Action::Write, 0, 4096, false);
    client.history.end_effect(aborted);
    client.read(0, 4096, 0);
    assert_eq!(client.history.check(), Ok(()));
    client.read(0, 4096, aborted);
    assert!(client.history.check().is_err());
}
