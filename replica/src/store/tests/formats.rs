//! Bytes: golden images, flipped bits, arbitrary input.

use super::disk::TestDisk;
use super::record::{BlockBuilder, BlockHead, Item, JOURNAL_MAGIC, MapId, SeRecord, decode_head};
use super::world::{World, formatted, image, open};
use super::*;
use std::format;
use std::string::String;
use trilith_block::{ChunkMap, Idx, Membership, SyncEpoch, Term};

/// Rows of 16 bytes with their offset, zero rows left out.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (n, row) in bytes
        .chunks(16)
        .enumerate()
        .filter(|(_, row)| row.iter().any(|b| *b != 0))
    {
        let hex: Vec<_> = row.iter().map(|b| format!("{b:02x}")).collect();
        text += &format!("{:04x}: {}\n", n * 16, hex.join(" "));
    }
    text
}

fn facts() -> Facts {
    Facts {
        volume: id(1),
        replica: id(2),
        member: member(1),
        config: Membership {
            generation: 1,
            ..MemberSet::first(3).into()
        },
        capacity: 40 << 20,
        term: Term(5),
        voted: id(3),
        attach_epoch: 6,
        se: SyncEpoch {
            term: Term(4),
            n: 2,
        },
        iss: MemberSet(3),
        trk: MemberSet(7),
        loss: 1,
        w: Idx(99),
        tainted: true,
        flush_failed: false,
        sealed: false,
        volatile_cache: true,
    }
}

fn superblock() -> Superblock {
    Superblock {
        seq: 9,
        boot: id(7),
        facts: facts(),
        geometry: Geometry::DEFAULT,
        layout: Layout::new(&Geometry::DEFAULT, 40 << 20, 3, false),
        journal_id: 0x1122,
        journal_first_seq: 33,
        checkpoint_slot: 1,
        checkpoint_seq: 8,
        checkpoint_blocks: 2,
    }
}

fn journal_block(buffers: &mut TestBuffers) -> BufSlice {
    let block = buffers.alloc(4096).unwrap();
    let mut builder = BlockBuilder::new(buffers.bytes_mut(block));
    let items = [
        (
            Item::Term {
                term: Term(5),
                engine: id(3),
                attach_epoch: 6,
            },
            0,
        ),
        (
            Item::Se(SeRecord {
                se: SyncEpoch {
                    term: Term(5),
                    n: 1,
                },
                iss: MemberSet(3),
                trk: MemberSet(7),
                loss: 2,
                w: Idx(70),
                untaint: true,
                need_dropped: true,
            }),
            0,
        ),
        (Item::W(Idx(71)), 0),
        (Item::Map(MapId::NEED, ExtentNo(1)), 0xf0),
        (Item::Map(MapId::LIMBO, ExtentNo(2)), 1),
        (Item::Map(MapId::ALLOCATED, ExtentNo(3)), 3),
        (Item::Map(MapId::ALLOCATED, ExtentNo(4)), 0),
        (Item::Map(MapId::dirty(member(2)), ExtentNo(5)), 7),
        (Item::AlDel(ExtentNo(6)), 0),
        (Item::AlAdd(ExtentNo(7)), 0),
        (Item::AlAdd(ExtentNo(8)), 0),
        (Item::AlAdd(ExtentNo(9)), 0),
        (Item::Taint { flush_failed: true }, 0),
        (Item::Loss(3), 0),
        (Item::Seal(true), 0),
    ];
    for (item, mask) in items {
        assert!(builder.push(buffers.bytes_mut(block), &item, mask));
    }
    let head = BlockHead {
        magic: JOURNAL_MAGIC,
        seq: 12,
        id: 0x1122,
        continues: true,
        place: 1,
        w: Idx(72),
    };
    builder.finish(buffers, block, &head);
    assert_eq!(
        decode_head(buffers, buffers.bytes(block), JOURNAL_MAGIC),
        Some(head)
    );
    block
}

#[test]
fn superblock_is_byte_for_byte_as_documented() {
    let mut buffers = TestBuffers::default();
    let block = buffers.alloc(4096).unwrap();
    superblock().encode(&mut buffers, block);
    let bytes = buffers.bytes(block);
    assert_eq!(
        dump(bytes),
        include_str!("../../../tests/golden/superblock.hex")
    );
    assert_eq!(Superblock::decode(&buffers, bytes), Ok(superblock()));
}

/// Format version 4: one of the voters holds no data.
#[test]
fn superblock_of_a_volume_with_a_witness_is_byte_for_byte_as_documented() {
    let mut buffers = TestBuffers::default();
    let block = buffers.alloc(4096).unwrap();
    let mut with = superblock();
    with.facts.config.witness = MemberSet::EMPTY.with(member(2));
    with.facts.trk = MemberSet(3);
    with.encode(&mut buffers, block);
    let bytes = buffers.bytes(block);
    assert_eq!(Superblock::decode(&buffers, bytes), Ok(with));
    let golden = include_str!("../../../tests/golden/superblock_witness.hex");
    assert_eq!(dump(bytes), golden);
    // Two of them, or one of two voters: not a configuration.
    for (voters, witness) in [(7, 6), (3, 2)] {
        with.facts.config.voters = MemberSet(voters);
        with.facts.config.witness = MemberSet(witness);
        with.encode(&mut buffers, block);
        let found = Superblock::decode(&buffers, buffers.bytes(block));
        assert_eq!(found, Err(SuperblockError::Field { offset: 160 }));
    }
}

/// Format version 2: a configuration that was changed.
#[test]
fn superblock_of_a_changed_configuration_is_byte_for_byte_as_documented() {
    let mut buffers = TestBuffers::default();
    let block = buffers.alloc(4096).unwrap();
    for (cfg_gen, next, joint) in [
        (0x50001, MemberSet(0b1011), false),
        (0x50002, MemberSet(0b1011), true),
        (0x50003, MemberSet::EMPTY, false),
        (0, MemberSet::EMPTY, false),
    ] {
        let mut changed = superblock();
        (
            changed.facts.config.generation,
            changed.facts.config.next,
            changed.facts.config.joint,
        ) = (cfg_gen, next, joint);
        changed.encode(&mut buffers, block);
        let bytes = buffers.bytes(block);
        assert_eq!(Superblock::decode(&buffers, bytes), Ok(changed));
        assert_eq!(bytes[8], 2, "older builds refuse it");
        if joint {
            let golden = include_str!("../../../tests/golden/superblock_joint.hex");
            assert_eq!(dump(bytes), golden);
        }
    }
}

#[test]
fn journal_block_is_byte_for_byte_as_documented_and_replays() {
    let mut buffers = TestBuffers::default();
    let block = journal_block(&mut buffers);
    let bytes = buffers.bytes(block);
    assert_eq!(
        dump(bytes),
        include_str!("../../../tests/golden/journal_block.hex")
    );
    let mut image = super::image::Image::new(superblock(), 0);
    assert!(record::replay(bytes, &mut image).is_some());
    // The epoch assigns it (C15), what follows raises it.
    assert_eq!(image.facts.w, Idx(72));
    assert_eq!((image.facts.loss, image.facts.se.n), (3, 1));
    assert!(image.facts.tainted && image.facts.flush_failed && image.facts.sealed);
    assert_eq!(image.map(MapName::Dirty(member(2))).mask(ExtentNo(5)), 7);
    assert_eq!(image.map(MapName::Need).mask(ExtentNo(1)), 0xf0);
    assert_eq!(
        image.activity_log.iter().map(|e| e.0).collect::<Vec<_>>(),
        [7, 8, 9]
    );
}

#[test]
fn window_words_are_as_documented() {
    let mut world = World::new();
    world.write_skip(1, range(5, 2), 1, MemberSet::of(member(2)));
    world.run();
    world.store.set_lease(LeaseGrant {
        until: trilith_block::Monotonic(77),
        engine: id(4),
    });
    world.settle();
    let memory = world.words.memory.borrow();
    let bytes: Vec<u8> = memory[..32 + 16]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    assert_eq!(
        dump(&bytes),
        include_str!("../../../tests/golden/window.hex")
    );
}

/// A volume with something in every structure, and its image.
fn busy() -> TestDisk {
    let mut world = World::new();
    for n in 0..20u64 {
        world.write_skip(n + 1, range((n % 8) * 1024, 1), n, MemberSet::of(member(1)));
        world.store.vote(Token(n), Term(n), id(3), 0).unwrap();
        world.run();
        world.store.set_tidx(Idx(n + 1));
    }
    let mut need = ChunkMap::new();
    need.set_mask(ExtentNo(3), 6);
    world.store.need_set(Token(99), &need).unwrap();
    world.run();
    let mut term = 100;
    loop {
        world.store.vote(Token(term), Term(term), id(3), 0).unwrap();
        world.run();
        term += 1;
        let disk = world.disk.after_power_loss(&[], &[]);
        if image(disk.clone()).unwrap().report.journal_blocks == 3 {
            return disk;
        }
    }
}

#[test]
fn a_flipped_bit_in_any_structure_is_found_or_harmless() {
    let disk = busy();
    let sound = image(disk.clone()).unwrap();
    let sb = sound.superblock;
    let mut random = Random(3);
    let used = sb.journal_first_seq + sound.report.journal_blocks;
    let last = (used - 1) % 8;
    let mut checked = [0; 3];
    for _ in 0..600 {
        let bit = random.below(8) as u8;
        let mut flipped = disk.clone();
        match random.below(3) {
            0 => {
                let copy = random.below(2);
                flipped.flip((copy << 20) + random.below(4096), bit);
                let found = image(flipped).unwrap();
                assert_eq!((found.facts, &found.maps), (sound.facts, &sound.maps));
                assert_eq!(check(&found), [Finding::Superblock(copy as usize)]);
                checked[0] += 1;
            }
            1 if sb.checkpoint_blocks > 0 => {
                let at = random.below(u64::from(sb.checkpoint_blocks) * 4096);
                flipped.flip(sb.checkpoint_offset(sb.checkpoint_slot) + at, bit);
                let opened = open(flipped, &TestWords::new(), id(9)).unwrap();
                assert!(opened.opened.maps_lost && opened.store.facts().tainted);
                assert_eq!(opened.store.facts().term, sound.facts.term);
                assert_eq!(
                    opened.store.map(MapName::Need).extent_count(),
                    EXTENTS as usize
                );
                checked[1] += 1;
            }
            2 => {
                let place = random.below(8);
                flipped.flip(
                    sb.layout.journal_offset + place * 4096 + random.below(4096),
                    bit,
                );
                match image(flipped) {
                    Err(OpenError::JournalLost { .. }) => checked[2] += 1,
                    Err(error) => panic!("{error:?}"),
                    // The last block cannot be told from a torn write; others are not live.
                    Ok(found) => {
                        let live = (sb.journal_first_seq..used).any(|seq| seq % 8 == place);
                        assert!(place == last || !live, "block at {place} was lost silently");
                        assert!(found.facts == sound.facts || place == last);
                    }
                }
            }
            _ => (),
        }
    }
    assert!(checked.iter().all(|n| *n > 20), "{checked:?}");
}

#[test]
fn an_older_superblock_over_a_newer_life_is_refused() {
    let first = busy();
    let mut next = open(first.clone(), &TestWords::new(), id(9)).unwrap();
    next.store.vote(Token(1), Term(77), id(3), 0).unwrap();
    next.run();
    let mut mixed = next.disk.clone();
    for offset in [0, 1 << 20] {
        mixed.set_meta_block(offset, &first.meta_block(offset));
    }
    let found = image(mixed).err();
    assert!(
        matches!(found, Some(OpenError::JournalNewer { .. })),
        "{found:?}"
    );
}

#[test]
fn an_unformatted_disk_is_named_as_such() {
    let error = open(TestDisk::default(), &TestWords::new(), BOOT).err();
    let magic = SuperblockError::Magic { found: 0 };
    assert_eq!(error, Some(OpenError::Superblocks { a: magic, b: magic }));
}

/// Any bytes as a superblock and as a journal block: a value or an error.
fn fuzz_blocks(bytes: &[u8]) {
    let mut buffers = TestBuffers::default();
    let block = buffers.alloc(4096).unwrap();
    for (magic, crc_at) in [
        (u64::to_le_bytes(superblock::SUPERBLOCK_MAGIC), 12),
        (*b"TRJB\0\0\0\0", 4),
    ] {
        let target = buffers.bytes_mut(block);
        target.fill(0);
        let len = bytes.len().min(4096);
        target[..len].copy_from_slice(&bytes[..len]);
        target[..4].copy_from_slice(&magic[..4]);
        if crc_at == 12 {
            target[..8].copy_from_slice(&magic);
        }
        bytes::seal_block(&mut buffers, block, crc_at);
        let target = buffers.bytes(block);
        if let Ok(found) = Superblock::decode(&buffers, target) {
            assert!(found.geometry.is_valid());
        }
        let mut image = super::image::Image::new(superblock(), 0);
        if decode_head(&buffers, target, JOURNAL_MAGIC).is_some() {
            let _understood = record::replay(target, &mut image).is_some();
            assert!(image.activity_log.iter().all(|e| e.0 < image.extents()));
        }
    }
}

/// Overwrites a sound volume as the bytes say (8 a place, checksums made right) and opens it.
fn fuzz_open(sound: &TestDisk, bytes: &[u8]) {
    let mut disk = sound.clone();
    let mut buffers = TestBuffers::default();
    let block = buffers.alloc(4096).unwrap();
    for edit in bytes.chunks_exact(8) {
        let area = u64::from(edit[0]) % 24;
        let offset = match area {
            0 => 0,
            1 => 1 << 20,
            n => (2 << 20) + (n - 2) * 4096,
        };
        let old = disk.meta_block(offset);
        let target = buffers.bytes_mut(block);
        target.copy_from_slice(&old);
        let at = (usize::from(edit[1]) | usize::from(edit[2]) << 8) % 640;
        target[at] = edit[3];
        target[at + 1] ^= edit[4];
        if edit[5] % 4 != 0 {
            bytes::seal_block(&mut buffers, block, if area < 2 { 12 } else { 4 });
        }
        disk.set_meta_block(offset, buffers.bytes(block));
    }
    if let Ok(mut world) = open(disk, &TestWords::new(), id(9)) {
        world.store.vote(Token(1), Term(1000), id(3), 0).unwrap();
        world.run();
        assert_eq!(world.store.facts().term, Term(1000));
    }
}

#[test]
fn arbitrary_blocks_and_volumes_never_panic() {
    let mut random = Random(11);
    let mut bytes = vec![0; 4096];
    let mut buffers = TestBuffers::default();
    let journal = journal_block(&mut buffers);
    for n in 0..600 {
        if n % 2 == 0 {
            bytes.copy_from_slice(buffers.bytes(journal));
            for _ in 0..4 {
                bytes[random.below(300) as usize] = random.next() as u8;
            }
        } else {
            bytes.iter_mut().for_each(|b| *b = random.next() as u8);
        }
        fuzz_blocks(&bytes);
    }
    let sound = busy();
    for _ in 0..300 {
        let edits: Vec<u8> = (0..8 * (1 + random.below(3)))
            .map(|_| random.next() as u8)
            .collect();
        fuzz_open(&sound, &edits);
    }
}

#[test]
fn layouts_have_room_for_the_worst_checkpoint() {
    for (capacity, same) in [(4096, false), (1 << 40, true), (16 << 40, false)] {
        let layout = Layout::new(&Geometry::DEFAULT, capacity, 7, same);
        assert!(layout.is_sound(&Geometry::DEFAULT, capacity), "{layout:?}");
        let layout = layout.with_checksums(capacity);
        assert!(layout.is_sound(&Geometry::DEFAULT, capacity), "{layout:?}");
    }
    assert!(Geometry::DEFAULT.is_valid() && Geometry::TINY.is_valid() && SMALL.is_valid());
    let small = Geometry {
        al_slots: 4,
        ..SMALL
    };
    assert!(!small.is_valid(), "M1");
}

#[test]
fn a_volume_whose_every_chunk_is_in_every_map_checkpoints() {
    let mut disk = formatted(&params());
    let first = open(disk.clone(), &TestWords::new(), BOOT).unwrap();
    let sb = *first.store.superblock();
    disk = first.disk.clone();
    if sb.checkpoint_blocks == 0 {
        let mut all = ChunkMap::new();
        for extent in 0..EXTENTS as u32 {
            all.set_mask(ExtentNo(extent), u64::MAX);
        }
        let mut world = first;
        world.store.need_set(Token(1), &all).unwrap();
        world.run();
        disk = world.disk.after_power_loss(&[], &[]);
    }
    let world = open(disk, &TestWords::new(), id(9)).unwrap();
    assert_eq!(
        world.store.map(MapName::Need).chunk_count(),
        (EXTENTS - 1) * 64 + 3
    );
}
