#: about three machines: one is cut off and comes back, then all; a slow network that loses packets
#: timeout 500
#: nodes 3
#: cpus 1
#: memory 768
#: disk store 1024MiB
#: example trilith-e2e nbd_attach
. /h/volume.sh
. /h/parts.sh
net_up
volume_disk store
format /disk/replica $((NODE - 1)) 3 256MiB
replica $((NODE - 1)) --dir /disk/replica --listen "10.77.0.1$NODE:7000"
if [ "$NODE" != 1 ]; then
    # The run ends with node 1.
    sleep 900
fi

in_sync() {
    engine_says ".members[$1].role == \"in-sync\""
}

out_of_sync() {
    engine_says ".members[$1].role != \"in-sync\""
}

engine 256MiB --replica 0=10.77.0.11:7000 --replica 1=10.77.0.12:7000 --replica 2=10.77.0.13:7000
wait_for 120 engine_is healthy
nbd_attach
say "three nodes are healthy"
verify $NBD 8

link 3 down
verify $NBD 16
wait_for 60 out_of_sync 2
say "node 3 is cut off, two go on"
link 3 up
wait_for 120 engine_is healthy
say "node 3 is back and equal"

# Without a majority nothing is written, and nothing fails.
link 1 down
dd if=/dev/urandom of=$NBD bs=64k count=8 oflag=direct status=none &
writer=$!
sleep 10
kill -0 $writer
link 1 up
wait $writer
wait_for 120 engine_is healthy
say "node 1 was cut off: a write waited for it"

modprobe sch_netem
tc qdisc add dev "$CARD" root netem delay 20ms 5ms loss 1%
verify $NBD 4
filesystem $NBD ext4
# A node that lags far behind may have been put out meanwhile.
tc qdisc del dev "$CARD" root
wait_for 120 engine_is healthy
say "20 ms more and one packet in a hundred lost: slower, and right"
nbd_detach
engine_end
