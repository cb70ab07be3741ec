#: about ublk: partitions outlive restarts, the size does not change, a loss ends what waited
#: timeout 300
#: memory 1536
. /h/volume.sh
VOLUME=/tmp/vol
serve=(--nbd off --iscsi off --window-dir /run/windows)
mkdir -p /run/windows
ublk_start --size 256MiB "${serve[@]}"

# Partitions: two at first; a third while the first is in use.
printf 'label: gpt\n,64MiB\n,64MiB\n' | sfdisk --quiet $UBLK
blockdev --rereadpt $UBLK
wait_for 5 test -b ${UBLK}p2
mkfs.ext4 -q ${UBLK}p1
mkfs.ext4 -q ${UBLK}p2
mkdir -p /p1 /p2
mount ${UBLK}p1 /p1
printf ',32MiB\n' | sfdisk --quiet --append --no-reread $UBLK
partx --update $UBLK
wait_for 5 test -b ${UBLK}p3
[ "$(blockdev --getsize64 ${UBLK}p3)" = $((32 << 20)) ]
mount ${UBLK}p2 /p2
for dir in /p1 /p2; do
    cp /usr/lib/x86_64-linux-gnu/libc*.so* $dir/
done
head -c $((1 << 20)) /dev/urandom > /tmp/raw
dd if=/tmp/raw of=${UBLK}p3 bs=64k oflag=direct status=none
(cd / && md5sum p1/libc* p2/libc*) > /tmp/sums
sfdisk --dump $UBLK > /tmp/table

# partitions_are_whole: with what was written to them.
partitions_are_whole() {
    wait_for 10 test -b ${UBLK}p3
    sfdisk --verify $UBLK > /h/out/sfdisk 2>&1 || fail "$(cat /h/out/sfdisk)"
    sfdisk --dump $UBLK | cmp - /tmp/table
    cmp --bytes=$((1 << 20)) ${UBLK}p3 /tmp/raw
    (cd / && md5sum --check --quiet /tmp/sums)
}

kill_process engine
wait_for 60 volume_is healthy
partitions_are_whole
say "the engine was killed, partitions stay and stay mounted"
umount /p1 /p2
volume_stop
[ ! -e ${UBLK}p1 ] || fail "a partition of a device that is gone"
ublk_start "${serve[@]}"
wait_for 10 test -b ${UBLK}p2
filesystem_is_clean ${UBLK}p1 ext4
filesystem_is_clean ${UBLK}p2 ext4
mount ${UBLK}p1 /p1
mount ${UBLK}p2 /p2
partitions_are_whole
say "after a restart the partitions are there and whole"

# The size: refused with what to say instead, and the device that is in use is left as it is.
volume_stop
trilith ublk list | grep -q quiesced
rc=0
trilith up --dir $VOLUME --ublk --size 512MiB "${serve[@]}" > /h/out/resize 2>&1 || rc=$?
[ $rc = 2 ] || fail "asked for another size: status $rc"
grep -q 'expected --size 256 MiB' /h/out/resize || fail "$(cat /h/out/resize)"
trilith ublk list | grep -q quiesced
ublk_start --size 256MiB "${serve[@]}"
[ "$(blockdev --getsize64 $UBLK)" = $((256 << 20)) ]
partitions_are_whole
umount /p1 /p2
say "another size is refused, and changes nothing"

# All replicas lose their power after writes that nobody flushed. A write that came while nobody served
# the device is of before the loss: it ends with an error when the loss is accepted, and is never done.
head -c 4096 /dev/zero > /tmp/zero
dd if=/tmp/zero of=${UBLK}p3 bs=4k count=1 oflag=direct conv=fsync status=none
dd if=/tmp/raw of=$UBLK bs=64k count=8 seek=3000 oflag=direct status=none
everything_dies
rm -r /run/windows/*
dd if=/tmp/raw of=${UBLK}p3 bs=4k count=1 oflag=direct status=none 2> /h/out/old-write &
old=$!
volume_up --ublk "${serve[@]}"
wait_for 60 volume_decided
volume_is waiting || fail "expected a loss"
wait_for 30 ublk_is_live
kill -0 $old || fail "the write did not wait for the operator"
trilith volume accept-loss --dir $VOLUME
if wait $old; then
    fail "a write of before the loss has been done"
fi
wait_for 60 volume_is healthy
cmp --bytes=4096 ${UBLK}p3 /tmp/zero
dd if=/tmp/raw of=${UBLK}p3 bs=4k count=1 oflag=direct status=none
cmp --bytes=4096 ${UBLK}p3 /tmp/raw
say "a write of before the loss has failed, one of after it is served"
verify ${UBLK}p3 2
volume_stop
stores_are_sound
kernel_is_content
