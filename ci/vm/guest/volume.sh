# For scenarios with a volume in one guest that `trilith up` serves, and for block devices of any client.

VOLUME=/disk/vol
NBD=/dev/nbd0
UBLK=/dev/ublkb0

# volume_disk NAME: a file system for the volume's directory, on a disk of the guest; made when it has
# none.
volume_disk() {
    local device
    device=$(disk "$1")
    blkid "$device" > /dev/null || mkfs.ext4 -q "$device"
    mkdir -p /disk
    mount "$device" /disk
}

# volume_start ARGUMENTS...: `trilith up` in the background, until the volume is healthy.
volume_start() {
    volume_up "$@"
    wait_for 120 volume_is healthy
}

volume_up() {
    setsid trilith up --dir $VOLUME "$@" >> /h/out/up.log 2>&1 < /dev/null &
    UP=$!
}

volume_state() {
    trilith status --dir $VOLUME --json 2> /dev/null | jq -r .volume.state
}

volume_is() {
    kill -0 $UP || fail "trilith up has ended: $(tail -n 3 /h/out/up.log)"
    [ "$(volume_state)" = "$1" ]
}

# volume_recover ARGUMENTS...: as volume_start after a power failure, where a loss of what was not
# flushed may have to be accepted first.
volume_recover() {
    volume_up "$@"
    wait_for 120 volume_decided
    if ! volume_is healthy; then
        say "the loss of what was not flushed is accepted"
        trilith volume accept-loss --dir $VOLUME
    fi
    wait_for 120 volume_is healthy
}

volume_decided() {
    trilith status --dir $VOLUME --json 2> /dev/null |
        jq -e '.volume | .state == "healthy" or (.detail | contains("accept-loss"))'
}

volume_stop() {
    kill -TERM $UP
    wait $UP
}

# ublk_start ARGUMENTS...: `trilith up --ublk`, until the volume is healthy and $UBLK is there.
ublk_start() {
    modprobe ublk_drv
    volume_start --ublk "$@"
    wait_for 60 ublk_is_live
}

ublk_is_live() {
    [ -b $UBLK ] && trilith ublk list | grep -q live
}

# process WORDS: the number of a process of ours.
process() {
    pgrep -o -f "trilith $1"
}

# kill_process WORDS: kills it and waits until another one has taken its place.
kill_process() {
    local old
    old=$(process "$1")
    kill -9 "$old"
    wait_for 60 process_other_than "$1" "$old"
}

# everything_dies: `trilith up` and all that it has started, at once.
everything_dies() {
    kill -9 $UP $(pgrep -P $UP)
    wait $UP || true
    wait_for 30 nothing_runs
}

nothing_runs() {
    # By its short name: the others are gone as soon as a process begins to end.
    ! pgrep -x trilith
}

process_other_than() {
    local new
    new=$(process "$1") && [ -n "$new" ] && [ "$new" != "$2" ]
}

# nbd_attach [CONNECTIONS]: the volume as $NBD through the kernel's nbd client. While nobody serves the
# volume, requests wait for three minutes. For scenarios with `#: example trilith-e2e nbd_attach`.
nbd_attach() {
    modprobe nbd nbds_max=4
    setsid /h/bin/nbd_attach 127.0.0.1:10809 0 "${1:-1}" > /h/out/nbd-attach 2>&1 < /dev/null &
    wait_for 30 nbd_is_there
}

nbd_is_there() {
    [ "$(blockdev --getsize64 $NBD)" -gt 0 ] && dd if=$NBD of=/dev/null bs=4k count=1 iflag=direct
}

nbd_detach() {
    nbd-client -d $NBD > /dev/null
}

# verify DEVICE MIB [FIO ARGUMENTS]: random writes of many sizes, read back and compared.
verify() {
    local device=$1 mib=$2
    shift 2
    fio --name=verify --filename="$device" --direct=1 --ioengine=io_uring --iodepth=16 \
        --rw=randwrite --bsrange=4k-64k --verify_interval=4k --size="${mib}m" --verify=crc32c \
        --verify_fatal=1 --randrepeat=0 "$@" > "/h/out/verify-$(date +%s%N)" 2>&1
}

# filesystem DEVICE ext4|xfs: makes one, copies a tree, checks it, and compares the tree after another
# mount.
filesystem() {
    local device=$1 kind=$2 tree=/usr/sbin
    case $kind in
        ext4) mkfs.ext4 -q -F "$device" ;;
        xfs) modprobe xfs && mkfs.xfs -q -f "$device" ;;
    esac
    mount "$device" /mnt
    cp -a $tree /mnt/tree
    umount /mnt
    filesystem_is_clean "$device" "$kind"
    mount "$device" /mnt
    diff -r --no-dereference $tree /mnt/tree
    umount /mnt
}

filesystem_is_clean() {
    case $2 in
        ext4) e2fsck -fn "$1" > "/h/out/e2fsck-$(date +%s%N)" 2>&1 ;;
        xfs) xfs_repair -n "$1" > "/h/out/xfs_repair-$(date +%s%N)" 2>&1 ;;
    esac
}

# reads_zero DEVICE MIB: its first part holds only zeroes.
reads_zero() {
    cmp -n "$(($2 << 20))" "$1" /dev/zero
}

# client_checks DEVICE: what every client's disk must do: I/O that is verified, file systems, discard.
client_checks() {
    verify "$1" 24
    filesystem "$1" ext4
    filesystem "$1" xfs
    say "verified, file systems are clean"
    blkdiscard -f "$1"
    reads_zero "$1" 64
    say "discarded"
}

# engines_die DEVICE: twice under load. Another takes its place, and no request of the client fails.
engines_die() {
    verify "$1" 48 --bs=4k &
    local load=$!
    for _ in 1 2; do
        sleep 3
        kill_process engine
    done
    wait $load
    say "verified through two engines that were killed"
    wait_for 60 volume_is healthy
}

# stores_are_sound: of a volume that has been stopped.
stores_are_sound() {
    local store
    for store in $VOLUME/replica-?; do
        trilith store check "$store"
    done
}

# write_synced DIR: files of random bytes, each made durable before a line on the console says so,
# until the power goes.
write_synced() {
    local number
    for number in $(seq 1000); do
        head -c 65536 /dev/urandom > /tmp/content
        dd if=/tmp/content of="$1/file-$number" bs=64k conv=fsync status=none
        sync "$1"
        echo "SYNCED file-$number $(sha256sum < /tmp/content | cut -d' ' -f1)"
    done
}

# synced_is_there DIR: all that the boot before said of `write_synced`.
synced_is_there() {
    local name sum synced=0
    while read -r _ name sum; do
        [ "$(sha256sum < "$1/$name" | cut -d' ' -f1)" = "$sum" ] || fail "$name is not what was synced"
        synced=$((synced + 1))
    done < <(tr -d '\r' < /h/before | grep -E '^SYNCED file-[0-9]+ [0-9a-f]{64}$')
    say "$synced files that were synced are there"
    [ $synced -ge 3 ]
}

# kernel_is_content: it has logged nothing that looks like a bug.
kernel_is_content() {
    if dmesg | grep -E 'BUG|WARNING|Oops|blocked for more than'; then
        fail "the kernel complains"
    fi
}
