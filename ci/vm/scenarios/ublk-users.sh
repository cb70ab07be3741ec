#: about ublk devices of an ordinary user: what is missing is said, a volume works, clean stop, a killed engine
#: timeout 240
#: memory 1536
. /h/volume.sh
modprobe ublk_drv
USER_ID=1234
VOLUME=/tmp/user/vol
install -d -o $USER_ID -g $USER_ID /tmp/user /dev/shm/user

AS_USER=(setpriv --reuid $USER_ID --regid $USER_ID --clear-groups --inh-caps=-all --bounding-set=-all)

# as_user COMMAND...: without any right of root's.
as_user() {
    "${AS_USER[@]}" "$@"
}

# udev: what the rules of docs/ublk-users.md do; there is no udev here.
udev() {
    local node owner
    trap - ERR
    set +e
    while sleep 0.1; do
        for node in /dev/ublk[bc][0-9]*; do
            [ -e "$node" ] && [ "$(stat -c %u "$node")" = 0 ] || continue
            owner=$(trilith ublk owner "${node#/dev/ublk[bc]}") || continue
            [ "$owner" = "0 0" ] || chown "${owner/ /:}" "$node"
        done
    done
}

up_as_user() {
    "${AS_USER[@]}" setsid trilith up --dir $VOLUME --ublk --iscsi off --window-dir /dev/shm/user "$@" \
        >> /h/out/up.log 2>&1 < /dev/null &
    UP=$!
    wait_for 90 volume_is healthy
    wait_for 60 test -b $UBLK
    wait_for 30 as_user test -w $UBLK
}

# Nothing has been set up: it is refused before anything is made, and says what to do.
chmod 600 /dev/ublk-control
if as_user trilith up --dir $VOLUME --ublk --size 64MiB > /tmp/refused 2>&1; then
    fail "an ordinary user has got what is not allowed"
fi
grep -q 'docs/ublk-users.md' /tmp/refused || fail "it says: $(cat /tmp/refused)"

chmod 666 /dev/ublk-control
udev > /dev/null 2>&1 < /dev/null &
UDEV=$!
up_as_user --size 64MiB --replicas 1
say "$(trilith ublk list | sed -n 3p)"
[ "$(trilith ublk owner 0)" = "$USER_ID $USER_ID" ] || fail "owner $(trilith ublk owner 0)"
as_user trilith ublk list | grep -q live
[ "$(cat /sys/block/ublkb0/queue/max_hw_sectors_kb)" = 256 ] || fail "requests are too long"
as_user fio --name=verify --filename=$UBLK --direct=1 --ioengine=io_uring --rw=randrw --bsrange=512-1m \
    --iodepth=16 --size=24m --verify=crc32c --verify_fatal=1 --allow_file_create=0 > /h/out/fio 2>&1
as_user mkfs.ext4 -q -F $UBLK
as_user e2fsck -fn $UBLK > /h/out/fsck 2>&1
as_user blkdiscard -f $UBLK
cmp --bytes=$((8 << 20)) $UBLK /dev/zero
as_user dd if=/dev/urandom of=$UBLK bs=64k count=64 oflag=direct status=none
before=$(md5sum < $UBLK)
say "an ordinary user's volume works"

# Such a device ends with its engine; the next engine makes a new one of the same volume.
kill_process engine
wait_for 60 volume_is healthy
wait_for 60 test -b $UBLK
wait_for 60 as_user test -w $UBLK
wait_for 60 dd if=$UBLK of=/dev/null bs=4k count=1 iflag=direct
[ "$(md5sum < $UBLK)" = "$before" ] || fail "other bytes than before"
say "the next engine has made the device again"

kill -TERM $UP
wait $UP
! [ -e $UBLK ] && ! [ -e /dev/ublkc0 ] || fail "the device is still there"
kill $UDEV
if dmesg | grep -E 'BUG|WARNING|Oops|blocked for more than'; then
    fail "the kernel complains"
fi
