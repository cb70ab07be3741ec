#: about power is cut while a ublk device is in use, with disks that lose their cache: what was fsynced is there
#: timeout 400
#: memory 1536
#: boots 2
#: disk store 2048MiB volatile
#: disk control 16MiB volatile
. /h/volume.sh
volume_disk store
serve=(--size 256MiB --nbd off --iscsi off)

if [ "$BOOT" = 1 ]; then
    # The control: written and never flushed, so that it must be lost. Else the cut is none.
    dd if=/dev/urandom of="$(disk control)" bs=4k count=64 oflag=direct status=none
    ublk_start "${serve[@]}"
    mkfs.ext4 -q $UBLK
    mount $UBLK /mnt
    sync
    write_synced /mnt &
    sleep 8
    # Somewhere in the middle of a write.
    sleep "0.$((RANDOM % 10))"
    power_cut
fi

reads_zero "$(disk control)" 1
modprobe ublk_drv
volume_recover --ublk "${serve[@]}"
wait_for 60 ublk_is_live
mount $UBLK /mnt
synced_is_there /mnt
umount /mnt
filesystem_is_clean $UBLK ext4
verify $UBLK 4
volume_stop
[ ! -b $UBLK ] || fail "the device is still there"
stores_are_sound
kernel_is_content
