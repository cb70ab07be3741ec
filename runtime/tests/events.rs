//! Timers, messages of other threads, signals, and an idle loop, on both backends.
#![allow(unsafe_code, reason = "raise() has no safe form")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Server, backends, drive, new_loop};
use std::thread;
use std::time::Duration;
use trilith_runtime::{Backend, Loop, LoopConfig, Signal, WakeError, now};

#[test]
fn settle_comes_at_the_deadline_and_the_loop_sleeps_until_then() {
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        let begun = now();
        let mut server = Server {
            wake_at: Some(begun.after(Duration::from_millis(80))),
            ..Server::default()
        };
        while server.wake_at.is_some() {
            driver.turn(&mut server, Duration::from_secs(10)).unwrap();
        }
        let took = now().since(begun);
        assert!(
            took >= Duration::from_millis(80) && took < Duration::from_secs(5),
            "{took:?}"
        );
        assert!(driver.io().stats().turns <= 4, "{:?}", driver.io().stats());
    }
}

#[test]
fn idle_loop_sleeps_in_the_kernel() {
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        driver.io().listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let mut server = Server::default();
        let begun = now();
        while now().since(begun) < Duration::from_millis(100) {
            driver
                .turn(&mut server, Duration::from_millis(100))
                .unwrap();
        }
        // The kernel may wake a thread once for the end of another ring of this process.
        assert!(driver.io().stats().enters <= 3, "{:?}", driver.io());
    }
}

#[test]
fn messages_of_other_threads_arrive_in_order() {
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        let mut server = Server::default();
        let waker = driver.io().waker();
        let sender = thread::spawn(move || {
            for number in 0..5000u32 {
                let mut message: Box<dyn std::any::Any + Send> = Box::new(number);
                loop {
                    match waker.send(message) {
                        Ok(()) => break,
                        Err(WakeError::Full(back)) => {
                            message = back;
                            thread::yield_now();
                        }
                        Err(WakeError::Gone(_)) => unreachable!("the loop is there"),
                    }
                }
            }
        });
        drive(&mut driver, &mut server, |server, _| {
            server.messages.len() == 5000
        });
        sender.join().unwrap();
        let numbers: Vec<u32> = server
            .messages
            .iter()
            .map(|message| *message.downcast_ref().unwrap())
            .collect();
        assert_eq!(numbers, (0..5000).collect::<Vec<u32>>());
    }
}

#[test]
fn waker_tells_when_the_loop_is_full_or_gone() {
    let mut driver = new_loop(Backend::Plain, 1);
    let waker = driver.io().waker();
    for _ in 0..trilith_runtime::limits::MESSAGES_MAX {
        waker.send(Box::new(())).unwrap();
    }
    assert!(matches!(waker.send(Box::new(())), Err(WakeError::Full(_))));
    drop(driver);
    assert!(matches!(waker.send(Box::new(())), Err(WakeError::Gone(_))));
}

#[test]
fn signals_arrive_as_events() {
    for backend in backends() {
        // A thread of its own, so that its signal mask is its own.
        let test = thread::spawn(move || {
            let mut driver = new_loop(backend, 1);
            driver
                .io()
                .catch_signals(&[Signal::User1, Signal::Hangup])
                .unwrap();
            assert!(driver.io().catch_signals(&[Signal::Child]).is_err());
            let mut server = Server::default();
            for signal in [libc::SIGUSR1, libc::SIGHUP] {
                // SAFETY: raise only sends a signal, which is blocked, to this thread.
                assert_eq!(unsafe { libc::raise(signal) }, 0);
            }
            drive(&mut driver, &mut server, |server, _| {
                server.signals.len() == 2
            });
            server
                .signals
                .sort_by_key(|signal| *signal == Signal::User1);
            assert_eq!(server.signals, [Signal::Hangup, Signal::User1]);
        });
        test.join().unwrap();
    }
}

#[test]
fn auto_takes_the_best_backend_and_run_ends_at_stop() {
    let mut driver = Loop::new(LoopConfig::default()).unwrap();
    let best = backends().pop().unwrap();
    assert_eq!(driver.io().backend(), best);
    let mut server = Server::default();
    driver.io().stop();
    driver.run(&mut server).unwrap();
}
