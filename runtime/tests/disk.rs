//! Disk requests on both backends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Dice, Server, backends, drive, new_loop};
use std::path::Path;
use trilith_block::{BufSlice, Buffers};
use trilith_runtime::{Backend, DataFile, DiskOp, DiskRequest, Errno, FileId, Loop, OpenFile};

struct Bench {
    driver: Loop,
    server: Server,
    file: FileId,
}

fn bench(backend: Backend, dir: &Path, direct: bool) -> Bench {
    let mut driver = new_loop(backend, 16);
    let path = dir.join(format!("data-{backend:?}-{direct}"));
    let how = OpenFile {
        create: true,
        direct,
        ..OpenFile::existing(path)
    };
    let file = driver.io().open_file(&how).unwrap();
    driver.io().file(file).unwrap().set_len(64 << 20).unwrap();
    Bench {
        driver,
        server: Server::default(),
        file,
    }
}

impl Bench {
    fn start(&mut self, token: u64, op: DiskOp) {
        self.driver
            .io()
            .disk(self.file, DiskRequest { op, token })
            .unwrap();
    }

    fn wait(&mut self, count: usize) {
        drive(&mut self.driver, &mut self.server, |server, _| {
            server.done.len() >= count
        });
    }

    /// One request from start to end.
    fn run(&mut self, op: DiskOp) -> Result<u32, Errno> {
        self.server.done.clear();
        self.start(99, op);
        self.wait(1);
        assert_eq!(self.server.done[0].token, 99);
        self.server.done[0].result
    }

    fn alloc(&mut self, len: u32) -> BufSlice {
        self.driver.io().arena().alloc(len).unwrap()
    }

    fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let buf = self.alloc(len);
        let read = self.run(DiskOp::Read { offset, buf }).unwrap();
        assert_eq!(read, len);
        let bytes = self.driver.io().arena().bytes(buf).to_vec();
        self.driver.io().arena().release(buf.buf);
        bytes
    }

    fn write(&mut self, offset: u64, byte: u8, len: u32) {
        let buf = self.alloc(len);
        self.driver.io().arena().bytes_mut(buf).fill(byte);
        assert_eq!(
            self.run(DiskOp::Write {
                offset,
                buf,
                dsync: true
            }),
            Ok(len)
        );
        self.driver.io().arena().release(buf.buf);
    }
}

fn each(mut test: impl FnMut(&mut Bench)) {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends() {
        for direct in [false, true] {
            let mut bench = bench(backend, dir.path(), direct);
            test(&mut bench);
            assert!(
                bench.driver.is_at_rest(),
                "{backend:?} direct {direct}: buffers are missing"
            );
        }
    }
}

#[test]
fn thousand_random_writes_in_flight_land_where_they_belong() {
    each(|bench| {
        let mut dice = Dice(3);
        let mut model = vec![0u8; 1024];
        let mut token = 0;
        for _ in 0..3 {
            let mut blocks: Vec<usize> = (0..1024).collect();
            for at in (1..1024).rev() {
                blocks.swap(at, dice.below(at + 1));
            }
            bench.server.done.clear();
            for block in &blocks {
                token += 1;
                let byte = dice.next().to_le_bytes()[0];
                model[*block] = byte;
                let buf = bench.alloc(4096);
                bench.driver.io().arena().bytes_mut(buf).fill(byte);
                let offset = *block as u64 * 4096;
                bench.start(
                    token,
                    DiskOp::Write {
                        offset,
                        buf,
                        dsync: token % 50 == 0,
                    },
                );
                bench.driver.io().arena().release(buf.buf);
            }
            bench.wait(1024);
            assert!(bench.server.done.iter().all(|done| done.result == Ok(4096)));
        }
        assert_eq!(bench.run(DiskOp::Flush), Ok(0));
        for (half, chunk) in model.chunks(256).enumerate() {
            let bytes = bench.read(half as u64 * (1 << 20), 1 << 20);
            for (block, expected) in bytes.chunks(4096).zip(chunk) {
                assert!(block.iter().all(|byte| byte == expected));
            }
        }
        assert_eq!(bench.driver.io().stats().disk_ops, 3 * 1024 + 1 + 4);
    });
}

#[test]
fn punched_and_zeroed_ranges_read_zero_and_allocation_takes_space() {
    each(|bench| {
        let allocated = |bench: &mut Bench| {
            bench
                .driver
                .io()
                .file(bench.file)
                .unwrap()
                .allocated_bytes()
                .unwrap()
        };
        assert_eq!(
            bench.run(DiskOp::Allocate {
                offset: 0,
                len: 4 << 20
            }),
            Ok(0)
        );
        assert!(allocated(bench) >= 4 << 20);
        bench.write(0, 1, 1 << 20);
        bench.write(1 << 20, 2, 1 << 20);
        let before = allocated(bench);
        assert_eq!(
            bench.run(DiskOp::PunchHole {
                offset: 0,
                len: 1 << 20
            }),
            Ok(0)
        );
        assert!(allocated(bench) + (1 << 19) < before);
        assert!(bench.read(0, 1 << 20).iter().all(|byte| *byte == 0));
        assert!(bench.read(1 << 20, 1 << 20).iter().all(|byte| *byte == 2));
        match bench.run(DiskOp::ZeroRange {
            offset: 1 << 20,
            len: 65536,
        }) {
            Ok(_) => assert!(bench.read(1 << 20, 65536).iter().all(|byte| *byte == 0)),
            Err(error) => assert_eq!(error, Errno::NOT_SUPPORTED, "tmpfs has no zero range"),
        }
        assert!(
            bench
                .read((1 << 20) + 65536, 4096)
                .iter()
                .all(|byte| *byte == 2)
        );
    });
}

#[test]
fn read_at_the_end_of_the_file_is_short() {
    each(|bench| {
        let buf = bench.alloc(1 << 20);
        let end = 64 << 20;
        assert_eq!(
            bench.run(DiskOp::Read {
                offset: end - 8192,
                buf
            }),
            Ok(8192)
        );
        assert_eq!(bench.run(DiskOp::Read { offset: end, buf }), Ok(0));
        bench.driver.io().arena().release(buf.buf);
    });
}

#[test]
fn failures_come_back_as_errors_of_their_request_only() {
    each(|bench| {
        let huge = bench.run(DiskOp::Allocate {
            offset: 0,
            len: 1 << 60,
        });
        assert!(huge.is_err_and(Errno::is_no_space), "{huge:?}");
        let buf = bench.alloc(4096);
        let beyond = bench.run(DiskOp::Write {
            offset: (1 << 62) + 4096,
            buf,
            dsync: false,
        });
        assert!(beyond.is_err(), "{beyond:?}");
        let path = bench
            .driver
            .io()
            .file(bench.file)
            .unwrap()
            .path()
            .to_path_buf();
        let how = OpenFile {
            write: false,
            lock: None,
            ..OpenFile::existing(path)
        };
        let read_only = DataFile::open(&how).unwrap();
        let (good, bad) = (bench.file, bench.driver.io().adopt(read_only).unwrap());
        bench.file = bad;
        assert_eq!(
            bench.run(DiskOp::Write {
                offset: 0,
                buf,
                dsync: false
            }),
            Err(Errno(libc::EBADF))
        );
        bench.file = good;
        assert_eq!(
            bench.run(DiskOp::Write {
                offset: 0,
                buf,
                dsync: false
            }),
            Ok(4096)
        );
        bench.driver.io().close_file(bad);
        assert!(bench.driver.io().file(bad).is_none());
        bench.driver.io().arena().release(buf.buf);
    });
}

#[test]
fn file_closed_with_requests_in_flight_finishes_them_first() {
    each(|bench| {
        for block in 0..100 {
            let buf = bench.alloc(4096);
            bench.driver.io().arena().bytes_mut(buf).fill(5);
            bench.start(
                block,
                DiskOp::Write {
                    offset: block * 4096,
                    buf,
                    dsync: false,
                },
            );
            bench.driver.io().arena().release(buf.buf);
        }
        let path = bench
            .driver
            .io()
            .file(bench.file)
            .unwrap()
            .path()
            .to_path_buf();
        bench.driver.io().close_file(bench.file);
        bench.wait(100);
        assert!(bench.server.done.iter().all(|done| done.result == Ok(4096)));
        let how = OpenFile {
            direct: false,
            ..OpenFile::existing(path)
        };
        let mut again = None;
        drive(&mut bench.driver, &mut bench.server, |_, _| {
            again = DataFile::open(&how).ok();
            again.is_some()
        });
        let mut bytes = [0; 4096];
        again.unwrap().read_at(99 * 4096, &mut bytes).unwrap();
        assert_eq!(
            bytes, [5; 4096],
            "the lock is free and the last write is there"
        );
    });
}

#[test]
fn loop_dropped_with_disk_requests_in_flight_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends() {
        let mut bench = bench(backend, dir.path(), true);
        let path = bench
            .driver
            .io()
            .file(bench.file)
            .unwrap()
            .path()
            .to_path_buf();
        for block in 0..200 {
            let buf = bench.alloc(4096);
            bench.driver.io().arena().bytes_mut(buf).fill(9);
            bench.start(
                block,
                DiskOp::Write {
                    offset: block * 4096,
                    buf,
                    dsync: true,
                },
            );
            bench.driver.io().arena().release(buf.buf);
        }
        bench
            .driver
            .turn(&mut bench.server, std::time::Duration::ZERO)
            .unwrap();
        drop(bench);
        let lock = Some(std::time::Duration::from_secs(10));
        let again = DataFile::open(&OpenFile {
            lock,
            ..OpenFile::existing(&path)
        });
        assert!(again.is_ok(), "the lock is free soon: {again:?}");
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes[..200 * 4096].iter().all(|byte| *byte == 9));
    }
}

#[test]
fn arena_is_registered_with_the_ring_where_memory_may_be_locked() {
    let dir = tempfile::tempdir().unwrap();
    if !backends().contains(&Backend::Uring) {
        return;
    }
    let mut bench = bench(Backend::Uring, dir.path(), true);
    bench.write(0, 1, 4096);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let registered = bench.driver.io().registered_bytes();
    assert!(
        registered == 1 << 20 || limit.is_some_and(|bytes| bytes < 8 << 20),
        "{registered}"
    );
    assert!(bench.read(0, 4096).iter().all(|byte| *byte == 1));
}
