#: about ublk without an engine: parameters, fio with verification, discard, recovery of a killed server
#: timeout 240
#: memory 1536
#: example trilith-frontend-ublk file
modprobe ublk_drv

# start_server LOG [FLAG...]: the example's server; SERVER is its process.
start_server() {
    local log=$1
    LOG=$log
    shift
    file --size $((128 << 20)) --queues 2 "$@" > "$log" 2>&1 < /dev/null &
    SERVER=$!
    wait_for 20 grep -q '^live' "$log"
}

stop_server() {
    kill -TERM $SERVER
    wait $SERVER
    grep -q '^gone' "$LOG" || fail "the server says: $(tail -1 "$LOG")"
    ! [ -b /dev/ublkb0 ] || fail "the block device is still there"
    ! [ -c /dev/ublkc0 ] || fail "the character device is still there"
}

queue() {
    cat /sys/block/ublkb0/queue/"$1"
}

# under_load: writes have been done since the device is there.
under_load() {
    [ "$(awk '{ print $5 }' /sys/block/ublkb0/stat)" -gt 50 ]
}

expect() {
    [ "$2" = "$3" ] || fail "$1: expected $3, found $2"
}

# Nothing behind it: the path alone.
start_server /tmp/null
fio --name=null --filename=/dev/ublkb0 --direct=1 --ioengine=io_uring --bs=4k --iodepth=16 --rw=randrw \
    --runtime=4 --time_based --output-format=json > /h/out/fio-null
say "null: $(jq -r '.jobs[0] | "\(.read.iops | floor) reads, \(.write.iops | floor) writes a second"' < /h/out/fio-null)"
stop_server

start_server /tmp/live --file /dev/shm/disk
way="user copy"
if trilith ublk list | head -n 1 | grep -q BATCH_IO; then
    way="user copy, batches"
fi
trilith ublk list | grep -q "$way " || fail "not by $way: $(trilith ublk list)"
expect size "$(blockdev --getsize64 /dev/ublkb0)" $((128 << 20))
expect "logical block" "$(queue logical_block_size)" 512
expect "physical block" "$(queue physical_block_size)" 4096
expect "smallest I/O" "$(queue minimum_io_size)" 4096
expect "optimal I/O" "$(queue optimal_io_size)" 1048576
expect cache "$(queue write_cache)" "write back"
expect FUA "$(queue fua)" 1
expect "longest request" "$(queue max_hw_sectors_kb)" 1024
expect "discard unit" "$(queue discard_granularity)" 65536
expect "longest discard" "$(queue discard_max_hw_bytes)" $((1 << 30))
expect "longest zeroes" "$(queue write_zeroes_max_bytes)" $((1 << 30))
expect rotational "$(queue rotational)" 0
expect queues "$(ls /sys/block/ublkb0/mq | wc -l)" 2

verify() {
    fio --name="$1" --filename=/dev/ublkb0 --direct=1 --ioengine=io_uring --rw=randrw --verify=crc32c \
        --verify_fatal=1 --minimal "${@:2}" > /h/out/fio-"$1" 2>&1 || fail "fio $1: $(tail -3 /h/out/fio-"$1")"
}
verify small --bs=512 --iodepth=1 --size=128k
verify blocks --bs=4k --iodepth=64 --size=6m
verify mixed --bsrange=512-256k --iodepth=32 --size=16m
verify long --bs=4m --iodepth=4 --size=32m
verify both --bs=4k --iodepth=16 --numjobs=2 --size=3m --offset_increment=32m
verify buffered --direct=0 --ioengine=psync --bs=8k --size=6m --end_fsync=1
say "verified"

# Discard and zeroes read back zero.
dd if=/dev/urandom of=/dev/ublkb0 bs=1M count=8 oflag=direct status=none
blkdiscard --offset 0 --length 4M /dev/ublkb0
blkdiscard --zeroout --offset 4M --length 4M /dev/ublkb0
cmp --bytes=$((8 << 20)) /dev/ublkb0 /dev/zero

# A file system through everything.
mkfs.ext4 -q -F /dev/ublkb0
mkdir -p /mnt
mount /dev/ublkb0 /mnt
cp -r /usr/bin/[a-d]* /mnt/
sync
before=$(cd /mnt && find . -type f -exec md5sum {} + | sort | md5sum)

# Killed twice while files are written: the file system sees nothing but a pause.
write_files() {
    local n
    for n in 1 2 3 4 5 6 7 8; do
        dd if=/dev/urandom of=/mnt/load-$1-$n bs=64k count=16 conv=fsync status=none || return
        md5sum /mnt/load-$1-$n
    done
}
loads=()
for round in 1 2; do
    write_files $round > /tmp/sums-$round &
    load=$!
    sleep 0.3
    kill -KILL $SERVER
    wait $SERVER || true
    kill -0 $load || fail "the load was over before the kill"
    start_server /tmp/round-$round --file /dev/shm/disk
    grep '^live 0 recovered' /tmp/round-$round
    loads+=($load)
done
for load in "${loads[@]}"; do
    wait $load || fail "a write failed"
done
[ "$(cat /tmp/sums-* | wc -l)" = 16 ] || fail "files are missing"
umount /mnt
e2fsck -fn /dev/ublkb0 > /h/out/fsck 2>&1
mount /dev/ublkb0 /mnt
cat /tmp/sums-* | md5sum --check --quiet
after=$(cd /mnt && find . -name 'load*' -prune -o -type f -exec md5sum {} + | sort | md5sum)
expect content "$after" "$before"
say "killed twice, nothing lost"

# In use: a stop leaves the device to the next server.
kill -TERM $SERVER
wait $SERVER
grep '^kept 0' /tmp/round-2
start_server /tmp/again --file /dev/shm/disk
grep '^live 0 recovered' /tmp/again
umount /mnt

# Stopped while requests are in flight: they fail or not, and nothing hangs.
for round in 1 2 3; do
    fio --name=stop --filename=/dev/ublkb0 --direct=1 --ioengine=io_uring --bs=4k --iodepth=64 --rw=randrw \
        --size=64m --runtime=20 --time_based --allow_file_create=0 > /dev/null 2>&1 < /dev/null &
    load=$!
    wait_for 60 under_load
    stop_server
    wait $load || true
    start_server /tmp/stop-$round --file /dev/shm/disk
done
stop_server

# Without batches (32768), without user copy (128), without both, as an older driver: the same again.
for bits in 32768 128 32896; do
    start_server /tmp/without-$bits --file /dev/shm/disk --without $bits
    say "without $bits: $(trilith ublk list | sed -n 3p)"
    verify mixed-$bits --bsrange=512-1m --iodepth=32 --size=16m
    fio --name=kill --filename=/dev/ublkb0 --direct=1 --ioengine=io_uring --bsrange=4k-64k --iodepth=64 --rw=randwrite \
        --size=8m --loops=3 --verify=crc32c --verify_fatal=1 --allow_file_create=0 > /h/out/fio-kill 2>&1 < /dev/null &
    load=$!
    wait_for 60 under_load
    kill -KILL $SERVER
    wait $SERVER || true
    kill -0 $load || fail "the load was over before the kill"
    start_server /tmp/again-$bits --file /dev/shm/disk --without $bits
    grep '^live 0 recovered' /tmp/again-$bits
    wait $load || fail "the load: $(tail -3 /h/out/fio-kill)"
    stop_server
done
if dmesg | grep -E 'BUG|WARNING|Oops|blocked for more than'; then
    fail "the kernel complains"
fi
