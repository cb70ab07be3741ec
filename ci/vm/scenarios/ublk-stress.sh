#: about ublk devices made, killed, taken over and deleted under load, also in the middle of a recovery
#: timeout 300
#: memory 1536
#: example trilith-frontend-ublk file
modprobe ublk_drv
SIZE=$((64 << 20))

# launch LOG: a server; SERVER is its process. It may not have come far when this returns.
launch() {
    file --size $SIZE --file /dev/shm/disk > "$1" 2>&1 < /dev/null &
    SERVER=$!
}

start_server() {
    launch "$1"
    wait_for 20 grep -q '^live' "$1"
}

no_devices() {
    trilith ublk list | grep -q 'no devices'
}

# load SECONDS: verified writes and reads; LOAD is its process.
load() {
    fio --name=load --filename=/dev/ublkb0 --direct=1 --ioengine=io_uring --bs=4k --iodepth=32 --rw=randrw \
        --size=16m --verify=crc32c --verify_fatal=1 --runtime="$1" --time_based --allow_file_create=0 \
        > /tmp/load 2>&1 < /dev/null &
    LOAD=$!
    wait_for 60 under_load
}

# under_load: writes have been done since the device is there.
under_load() {
    [ "$(awk '{ print $5 }' /sys/block/ublkb0/stat)" -gt 50 ]
}

# Added and removed while in use, the kind way and by force.
for round in 1 2 3 4 5 6; do
    start_server /tmp/round
    load 30
    if [ $((round % 2)) = 0 ]; then
        kill -TERM $SERVER
        wait $SERVER
    else
        kill -KILL $SERVER
        wait $SERVER || true
        wait_for 10 bash -c 'trilith ublk list | grep -q quiesced'
        trilith ublk delete 0
    fi
    # Its requests fail, and it ends.
    wait $LOAD || true
    wait_for 10 no_devices
done
say "$SECONDS s: six devices under load are gone"

# Killed again and again before the one that stays: not one request may fail.
start_server /tmp/first
load 20
for pause in 0.5 0.02 0.1 0.05 0.3; do
    kill -KILL $SERVER
    wait $SERVER || true
    launch /tmp/next
    sleep $pause
    kill -0 $SERVER || fail "the server has ended by itself: $(cat /tmp/next)"
done
wait_for 40 grep -q '^live 0 recovered' /tmp/next
wait $LOAD || fail "the load has failed: $(tail -5 /tmp/load)"
say "$SECONDS s: killed five times in a row"

# Live devices are not deleted by accident.
if trilith ublk delete 0 2> /tmp/refused; then
    fail "a live device was deleted"
fi
grep 'is served by process' /tmp/refused
kill -TERM $SERVER
wait $SERVER
wait_for 10 no_devices

# A number that is taken, and one that is not there.
file --size $SIZE --number 5 > /tmp/five 2>&1 < /dev/null &
SERVER=$!
wait_for 20 grep -q '^live 5' /tmp/five
kill -TERM $SERVER
wait $SERVER
if trilith ublk delete 5 2> /tmp/refused; then
    fail "a device that is not there was deleted"
fi
if dmesg | grep -E 'BUG|WARNING|Oops|blocked for more than'; then
    fail "the kernel complains"
fi
