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
    (
        for number in $(seq 1000); do
            head -c 65536 /dev/urandom > /tmp/content
            dd if=/tmp/content of=/mnt/file-$number bs=64k conv=fsync status=none
            sync /mnt
            echo "SYNCED file-$number $(sha256sum < /tmp/content | cut -d' ' -f1)"
        done
    ) &
    sleep 8
    # Somewhere in the middle of a write.
    sleep "0.$((RANDOM % 10))"
    power_cut
fi

reads_zero "$(disk control)" 1
volume_recover
nbd_attach
mount $NBD /mnt
synced=0
while read -r _ name sum; do
    [ "$(sha256sum < "/mnt/$name" | cut -d' ' -f1)" = "$sum" ] || fail "$name is not what was synced"
    synced=$((synced + 1))
done < <(tr -d '\r' < /h/before | grep -E '^SYNCED file-[0-9]+ [0-9a-f]{64}$')
say "$synced files that were synced are there"
[ $synced -ge 3 ]
umount /mnt
filesystem_is_clean $NBD ext4
verify $NBD 4
nbd_detach
volume_stop
for member in 0 1 2; do
    trilith store check $VOLUME/replica-$member
done
