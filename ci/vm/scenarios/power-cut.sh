#: about power is cut under load, with disks that lose their cache: what was fsynced is there
#: timeout 400
#: memory 1536
#: boots 2
#: disk store 2048MiB volatile
#: disk control 16MiB volatile
#: example trilith-e2e nbd_attach
. /h/volume.sh
volume_disk store

if [ "$BOOT" = 1 ]; then
    # The control: written and never flushed, so that it must be lost. Else the cut is none.
    dd if=/dev/urandom of="$(disk control)" bs=4k count=64 oflag=direct status=none
    volume_start --size 256MiB
    nbd_attach
    mkfs.ext4 -q $NBD
    mount $NBD /mnt
    sync
    write_synced /mnt &
    sleep 8
    # Somewhere in the middle of a write.
    sleep "0.$((RANDOM % 10))"
    power_cut
fi

reads_zero "$(disk control)" 1
volume_recover
nbd_attach
mount $NBD /mnt
synced_is_there /mnt
umount /mnt
filesystem_is_clean $NBD ext4
verify $NBD 4
nbd_detach
volume_stop
stores_are_sound
