#: about what the way through ublk costs with nothing behind it: with and without batches and user copy
#: timeout 300
#: memory 1536
#: example trilith-frontend-ublk file
#: peer libublk 0.4.8 null
# Prints figures and fails on none.
. /h/volume.sh
. /h/speed.sh
modprobe ublk_drv
UBLK=/dev/ublkb0
USER_COPY=128
BATCH_IO=32768

# null NAME BITS [COPIES]: measures the path without some of the driver's features.
null() {
    file --size $((256 << 20)) --without "$2" --copies "${3:-1}" > /tmp/null 2>&1 < /dev/null &
    SERVER=$!
    wait_for 20 grep -q '^live 0' /tmp/null
    ENGINE=$SERVER
    REPLICA=$SERVER
    measure "$1" $UBLK
    kill -TERM $SERVER
    wait $SERVER
    ENGINE=self
    REPLICA=self
}

say "driver: $(trilith ublk list | head -n 1)"
for _ in $(seq $ROUNDS); do
    null null 0
    null no-batch $BATCH_IO
    null no-user-copy $USER_COPY
    null neither $((USER_COPY + BATCH_IO))
    null nine-copies 0 9
    if peer_add null; then
        measure libublk-null /dev/ublkb1
        peer_del null
    fi
done
for name in no-batch no-user-copy neither libublk-null; do
    compare null $name
done
for name in null no-batch no-user-copy neither nine-copies; do
    cost $name
done
# A copy of 4 KiB by pread or pwrite: an eighth of what eight more cost.
say "one copy costs $(awk '$1 == "null" { ours += $7 - $4; count += $10 }
    $1 == "nine-copies" { theirs += $7 - $4; others += $10 }
    END { printf "%.1f us", (theirs / others - ours / count) * 10000 / 8 }' /h/out/figures)"
