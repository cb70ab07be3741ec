#: about a real volume as /dev/ublkb0: parameters, ext4 and XFS, engine, replica and up killed under load
#: timeout 420
#: memory 2048
modprobe ublk_drv
modprobe xfs
DIR=/tmp/volume
B=/dev/ublkb0

# start_up: `trilith up`; UP is its process. It has said that the device is there when this returns.
start_up() {
    : > /tmp/up
    trilith up --dir $DIR --size 512MiB --ublk --ublk-queues 2 --nbd unix:$DIR.nbd --iscsi off \
        > /tmp/up 2> /h/out/up-log-$((++STARTS)) < /dev/null &
    UP=$!
    wait_for 60 grep -q 'is the block device' /tmp/up
}
STARTS=0

# process engine|replica-0: a child's process id.
process() {
    local what=$1
    case $what in
        engine) pgrep -P "$UP" -f 'trilith engine' ;;
        *) pgrep -P "$UP" -f "trilith replica .*$what" ;;
    esac
}

expect() {
    [ "$2" = "$3" ] || fail "$1: expected $3, found $2"
}

mark() {
    say "$SECONDS s: $*"
}

start_up
cat /tmp/up
trilith ublk list | tee /h/out/list
grep -q live /h/out/list
trilith status --dir $DIR
expect size "$(blockdev --getsize64 $B)" $((512 << 20))
expect cache "$(cat /sys/block/ublkb0/queue/write_cache)" "write back"
expect flusher "$(($(cut -d' ' -f9 < /proc/"$(process engine)"/stat) & 0x00080000))" $((0x00080000))

verify() {
    fio --name="$1" --filename=$B --direct=1 --ioengine=io_uring --rw=randrw --verify=crc32c \
        --verify_fatal=1 --minimal "${@:2}" > /h/out/fio-"$1" 2>&1 || fail "fio $1: $(tail -3 /h/out/fio-"$1")"
}
verify sectors --bs=512 --iodepth=4 --size=64k
verify blocks --bs=4k --iodepth=64 --size=3m
verify mixed --bsrange=512-128k --iodepth=16 --size=8m
verify buffered --direct=0 --ioengine=psync --bs=16k --size=4m --end_fsync=1
mark "verified"

# What the network client sees is the same disk.
dd if=/dev/urandom of=$B bs=1M count=2 oflag=direct status=none
nbdcopy "nbd+unix:///vol?socket=$DIR.nbd" /tmp/by-nbd
cmp --bytes=$((2 << 20)) $B /tmp/by-nbd
rm /tmp/by-nbd
blkdiscard --offset 0 --length 1M $B
blkdiscard --zeroout --offset 1M --length 1M $B
cmp --bytes=$((2 << 20)) $B /dev/zero
mark "one disk, and it zeroes"

# A partition table, one part for each file system.
printf 'label: gpt\n,100MiB\n,\n' | sfdisk --quiet $B
wait_for 5 test -e ${B}p2
mkfs.ext4 -q -F ${B}p1
mkdir -p /ext4
mount ${B}p1 /ext4
cp /usr/lib/x86_64-linux-gnu/libc*.so* /ext4/
sync
sums=$(cd /ext4 && find . -type f -name 'libc*' -exec md5sum {} + | sort | md5sum)
mark "ext4 is filled"

# write_files NAME: files of random bytes, each made durable, with their sums on standard output.
write_files() {
    local n
    for n in 1 2 3 4 5 6; do
        dd if=/dev/urandom of=/ext4/load-$1-$n bs=64k count=8 conv=fsync status=none || return
        md5sum /ext4/load-$1-$n
    done
}

loads=()
load() {
    write_files "$1" > /tmp/sums-"$1" &
    loads+=($!)
    sleep 0.5
}

# The engine is killed twice in a row, then a replica, and nobody sees an error.
for round in 1 2; do
    load engine-$round
    old=$(process engine)
    kill -KILL "$old"
    wait_for 60 bash -c "grep -c 'is the block device' /tmp/up | grep -qx $((round + 1))"
    [ "$(process engine)" != "$old" ] || fail "the engine was not killed"
    mark "engine $round is replaced"
done
load replica
kill -KILL "$(process replica-1)"
for one in "${loads[@]}"; do
    wait "$one" || fail "a write failed"
done
loads=()
mark "replica is replaced"

# Everything that serves it is killed; the next start takes the device over.
load all
kill -KILL $UP
wait $UP || true
wait_for 30 bash -c '! pgrep -f "trilith [e]ngine"'
trilith ublk list
start_up
for one in "${loads[@]}"; do
    wait "$one" || fail "a write failed"
done
[ "$(cat /tmp/sums-* | wc -l)" = 24 ] || fail "files are missing"
cat /tmp/sums-* | md5sum --check --quiet
mark "up is replaced"

# In use, so it stays; then it is not, so it goes.
kill -TERM $UP
wait $UP
trilith ublk list | grep quiesced
start_up
umount /ext4
e2fsck -fn ${B}p1 > /h/out/e2fsck 2>&1
mount ${B}p1 /ext4
expect files "$(cd /ext4 && find . -type f -name 'libc*' -exec md5sum {} + | sort | md5sum)" "$sums"
umount /ext4
mark "ext4 is whole"

mkfs.xfs -q -f ${B}p2
mkdir -p /xfs
mount ${B}p2 /xfs
cp /usr/lib/x86_64-linux-gnu/libc*.so* /xfs/
kill -KILL "$(process engine)"
sync
(cd /xfs && md5sum ./*) > /tmp/xfs-sums
fstrim /xfs
umount /xfs
xfs_repair -n ${B}p2 > /h/out/xfs_repair 2>&1
mount ${B}p2 /xfs
(cd /xfs && md5sum --check --quiet /tmp/xfs-sums)
umount /xfs
mark "XFS is whole"

# A device that nobody will serve again.
kill -STOP $UP
kill -KILL "$(process engine)"
wait_for 10 bash -c 'trilith ublk list | grep -q quiesced'
trilith ublk delete 0
! [ -b $B ] || fail "the device is still there"
kill -CONT $UP
wait_for 30 test -e $B
wait_for 30 bash -c "grep -c 'is the block device' /tmp/up | grep -qx 3"

kill -TERM $UP
wait $UP
! [ -b $B ] || fail "the device is still there"
! [ -c /dev/ublkc0 ] || fail "the character device is still there"
trilith ublk list | grep 'no devices'
if dmesg | grep -E 'BUG|WARNING|Oops|blocked for more than|I/O error|EXT4-fs error|XFS.*[Cc]orrupt'; then
    fail "the kernel complains"
fi
