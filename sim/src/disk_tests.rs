//! The disk promises what it must, and no more.

use super::*;
use std::collections::BTreeSet;

fn disk(sector: usize) -> Disk {
    Disk::new(16 * PAGE as u64, 16 * PAGE as u64, sector, true)
}

fn write(page: u64, byte: u8, pages: usize, dsync: bool) -> Operation {
    Operation::Write {
        file: File::Data,
        offset: page * PAGE as u64,
        bytes: Rc::new(vec![byte; pages * PAGE]),
        dsync,
    }
}

fn first_bytes(disk: &Disk, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    disk.peek(File::Data, page * PAGE as u64, &mut bytes);
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

fn run(disk: &mut Disk, id: u64, operation: Operation, entropy: &mut Entropy) -> Option<Done> {
    disk.submit(id, operation);
    disk.complete(id, false, entropy)
}

#[test]
fn a_flush_covers_what_completed_before_it_was_submitted_and_nothing_later() {
    let mut entropy = Entropy::from_seed(1);
    let mut disk = disk(512);
    run(&mut disk, 1, write(0, 1, 1, false), &mut entropy);
    disk.submit(2, Operation::Flush { file: File::Data });
    run(&mut disk, 3, write(0, 2, 1, false), &mut entropy);
    run(&mut disk, 4, write(1, 3, 1, false), &mut entropy);
    disk.complete(2, false, &mut entropy);
    assert_eq!(first_bytes(&disk, 0), [2; 8], "reads see the newest value");
    disk.power_loss(Cut::LoseAll, &mut entropy);
    assert_eq!(first_bytes(&disk, 0), [1; 8]);
    assert_eq!(first_bytes(&disk, 1), [0; 8]);
}

#[test]
fn a_dsync_write_is_durable_at_completion_and_leaves_others_volatile() {
    let mut entropy = Entropy::from_seed(2);
    let mut disk = disk(512);
    run(&mut disk, 1, write(1, 9, 1, false), &mut entropy);
    run(&mut disk, 2, write(0, 5, 1, true), &mut entropy);
    disk.power_loss(Cut::LoseAll, &mut entropy);
    assert_eq!(first_bytes(&disk, 0), [5; 8]);
    assert_eq!(first_bytes(&disk, 1), [0; 8]);
}

#[test]
fn a_power_cut_tears_at_sectors_in_every_way_and_invents_nothing() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..2000 {
        let mut entropy = Entropy::from_seed(seed);
        let mut disk = disk(512);
        run(&mut disk, 1, write(0, 1, 1, true), &mut entropy);
        run(&mut disk, 2, write(0, 2, 1, false), &mut entropy);
        disk.submit(3, write(0, 3, 1, true));
        disk.power_loss(Cut::Sectors, &mut entropy);
        let found = first_bytes(&disk, 0);
        assert!(found.iter().all(|b| (1..=3).contains(b)), "{found:?}");
        outcomes.insert(found[..2].to_vec());
        assert_eq!(disk.busy(), 0);
    }
    assert_eq!(outcomes.len(), 9, "every combination of two sectors");
}

#[test]
fn a_device_with_4096_byte_sectors_never_tears_a_page() {
    for seed in 0..200 {
        let mut entropy = Entropy::from_seed(seed);
        let mut disk = disk(4096);
        run(&mut disk, 1, write(0, 1, 2, true), &mut entropy);
        disk.submit(2, write(0, 2, 2, false));
        disk.power_loss(Cut::Sectors, &mut entropy);
        for page in 0..2 {
            let found = first_bytes(&disk, page);
            assert!(found.iter().all(|b| *b == found[0]), "{found:?}");
        }
    }
}

#[test]
fn writes_of_a_dead_process_land_or_not_and_are_waited_for() {
    let mut landed = 0;
    for seed in 0..200 {
        let mut entropy = Entropy::from_seed(seed);
        let mut disk = disk(512);
        disk.submit(1, write(0, 7, 1, false));
        disk.orphan(&mut entropy);
        assert!(disk.draining());
        assert_eq!(disk.complete(1, false, &mut entropy), None);
        assert!(!disk.draining());
        landed += u32::from(first_bytes(&disk, 0)[0] == 7);
    }
    assert!((50..150).contains(&landed), "{landed} of 200 landed");
}

#[test]
fn a_failed_flush_loses_data_and_the_next_one_succeeds() {
    let mut lost = 0;
    for seed in 0..200 {
        let mut entropy = Entropy::from_seed(seed);
        let mut disk = disk(512);
        run(&mut disk, 1, write(0, 7, 1, false), &mut entropy);
        disk.faults.flush_error = 65536;
        let flush = Operation::Flush { file: File::Data };
        assert_eq!(
            run(&mut disk, 2, flush.clone(), &mut entropy),
            Some(Done::Error)
        );
        disk.faults.flush_error = 0;
        assert_eq!(
            run(&mut disk, 3, flush, &mut entropy),
            Some(Done::Ok(Vec::new()))
        );
        lost += u32::from(first_bytes(&disk, 0)[0] == 0);
    }
    assert!((50..150).contains(&lost), "{lost} of 200 lost");
}

#[test]
fn a_full_disk_refuses_new_pages_and_takes_old_ones() {
    let mut entropy = Entropy::from_seed(3);
    let mut disk = disk(512);
    run(&mut disk, 1, write(0, 1, 1, false), &mut entropy);
    disk.faults.room = Some(1);
    assert_eq!(
        run(&mut disk, 2, write(1, 2, 1, false), &mut entropy),
        Some(Done::NoSpace)
    );
    let again = run(&mut disk, 3, write(0, 3, 1, false), &mut entropy);
    assert_eq!(again, Some(Done::Ok(Vec::new())));
    let punch = Operation::Zero {
        file: File::Data,
        offset: 0,
        len: PAGE as u64,
        keep: false,
    };
    run(&mut disk, 4, punch, &mut entropy);
    assert_eq!(disk.allocated(), 0);
    let fits = run(&mut disk, 5, write(1, 2, 1, false), &mut entropy);
    assert_eq!(fits, Some(Done::Ok(Vec::new())));
}

#[test]
fn a_lying_disk_takes_back_only_what_no_honest_flush_has_covered() {
    let mut entropy = Entropy::from_seed(3);
    let mut disk = disk(512);
    let flush = || Operation::Flush { file: File::Data };
    run(&mut disk, 1, write(0, 1, 1, false), &mut entropy);
    run(&mut disk, 2, flush(), &mut entropy);
    disk.faults.lying_flush = true;
    run(&mut disk, 3, write(0, 2, 2, false), &mut entropy);
    run(&mut disk, 4, flush(), &mut entropy);
    run(&mut disk, 5, write(0, 3, 1, false), &mut entropy);
    run(&mut disk, 6, flush(), &mut entropy);
    run(&mut disk, 7, write(2, 4, 1, true), &mut entropy);
    assert!(disk.volatile_pages(File::Data).next().is_none(), "it says");
    assert!(disk.betrayed.is_empty());
    disk.power_loss(Cut::LoseAll, &mut entropy);
    assert_eq!(
        (&disk.betrayed.data[..], disk.betrayed.meta),
        (&[0, 1][..], 0)
    );
    let found = [0, 1, 2].map(|page| first_bytes(&disk, page));
    assert_eq!(found, [[1; 8], [0; 8], [4; 8]]);
    disk.betrayed = Betrayed::default();
    run(&mut disk, 8, write(0, 5, 1, false), &mut entropy);
    run(&mut disk, 9, flush(), &mut entropy);
    disk.faults.lying_flush = false;
    run(&mut disk, 10, flush(), &mut entropy);
    disk.power_loss(Cut::LoseAll, &mut entropy);
    assert!(disk.betrayed.is_empty());
    assert_eq!(first_bytes(&disk, 0), [5; 8]);
}
