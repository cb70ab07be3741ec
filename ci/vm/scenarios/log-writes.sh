#: about all that a replica writes is recorded: its store is sound at every flush and FUA write
#: timeout 600
#: memory 1536
#: disk recorded 160MiB
#: disk log 600MiB
#: disk replayed 160MiB
#: example trilith-e2e replay_log
#: example trilith-e2e nbd_attach
. /h/volume.sh
. /h/parts.sh
modprobe dm-log-writes
modprobe loop
recorded=$(disk recorded)
replayed=$(disk replayed)
log=$(disk log)

# The replica's device before anything is recorded: a new store.
format "$recorded" 0 1 64MiB
dd if="$recorded" of="$replayed" bs=1M conv=fsync status=none
dmsetup create --noudevsync lw \
    --table "0 $(blockdev --getsz "$recorded") log-writes $recorded $log"
dmsetup mknodes
mark() {
    dmsetup message lw 0 mark "$1"
}

replica 0 --device /dev/mapper/lw --listen unix:/run/replica-0.sock
engine 64MiB --replica 0=unix:/run/replica-0.sock
wait_for 120 engine_is healthy
nbd_attach
mkfs.ext4 -q $NBD
mount $NBD /mnt
sync /mnt
mkdir /tmp/files
for number in 1 2 3 4 5 6; do
    head -c $((number * 50000)) /dev/urandom > /tmp/files/file-$number
    cp /tmp/files/file-$number /mnt/
    # Something beside it that nobody waits for.
    head -c 100000 /dev/urandom > /mnt/beside
    sync /mnt/file-$number
    sync /mnt
    mark $number
done
umount /mnt
nbd_detach
engine_end
replica_end 0
dmsetup remove --noudevsync lw

# Power cuts, one after the other.
replay_log "$log" > /h/out/points
points=0
marks=0
from=0
export=/tmp/image
while read -r number kind name; do
    replay_log "$log" "$replayed" $from $((number + 1))
    from=$((number + 1))
    trilith store check "$replayed" > /h/out/check 2>&1 || {
        cp /h/out/check /h/out/check-$number
        cat /h/out/check
        fail "the store is not sound after entry $number ($kind $name)"
    }
    points=$((points + 1))
    # The kernel marks the end as well.
    if [ "$kind" = mark ] && [ "$name" != dm-log-writes-end ]; then
        marks=$((marks + 1))
        rm -f $export
        trilith store export "$replayed" $export > /dev/null
        mount -o loop $export /mnt
        for file in $(seq "$name"); do
            cmp /tmp/files/file-"$file" /mnt/file-"$file"
        done
        umount /mnt
        e2fsck -fn $export > /h/out/e2fsck-$number
    fi
done < /h/out/points
say "the store is sound at $points points, and has all that was synced at $marks of them"
[ $points -ge 20 ]
[ $marks = 6 ]
