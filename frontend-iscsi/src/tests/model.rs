//! Random reads and writes of two sessions against bytes in memory.

use super::client::{Client, cdb10, cdb16, low, world};
use crate::fuzz::{DISK_BYTES, Numbers};
use std::vec;
use std::vec::Vec;

#[test]
fn the_disk_holds_what_sessions_have_written() {
    for seed in 0..20 {
        let mut numbers = Numbers::new(seed);
        let block = if seed % 3 == 0 { 4096 } else { 512 };
        let mut world = world(|config| config.logical_block_bytes = block);
        let block = block as usize;
        let mut clients = [
            Client::ready(&mut world, 1, 1),
            Client::ready(&mut world, 2, 2),
        ];
        let mut model = vec![0u8; DISK_BYTES];
        for _ in 0..60 {
            let client = &mut clients[numbers.below(2)];
            let lba = numbers.below(300);
            let long = numbers.below(8) == 0;
            let count = 1 + numbers.below(if long { 2400 / (block / 512) } else { 20 });
            let (at, len) = (lba * block, count * block);
            let (place, blocks) = (u32::try_from(lba).unwrap(), u16::try_from(count).unwrap());
            let data: Vec<u8> = (0..len).map(|_| low(numbers.draw())).collect();
            match numbers.below(6) {
                0 => {
                    let cdb = cdb16(0x8b, 0, u64::from(place), u32::from(blocks));
                    assert_eq!(client.run(&mut world, &cdb, 0, &data).status, 0);
                    model[at..at + len]
                        .iter_mut()
                        .zip(&data)
                        .for_each(|(m, d)| *m |= d);
                }
                1 => {
                    let cdb = cdb10(0x41, 0, place, blocks);
                    assert_eq!(client.run(&mut world, &cdb, 0, &data[..block]).status, 0);
                    model[at..at + len]
                        .chunks_mut(block)
                        .for_each(|c| c.copy_from_slice(&data[..block]));
                }
                2 | 3 => {
                    assert_eq!(
                        client
                            .run(&mut world, &cdb10(0x2a, 0, place, blocks), 0, &data)
                            .status,
                        0
                    );
                    model[at..at + len].copy_from_slice(&data);
                }
                _ => {
                    let read = client.run(&mut world, &cdb10(0x28, 0, place, blocks), len, &[]);
                    assert!(
                        read.data == model[at..at + len],
                        "seed {seed}: {place}+{blocks}"
                    );
                }
            }
        }
        assert!(world.disk == model, "seed {seed}");
        world.end();
    }
}
