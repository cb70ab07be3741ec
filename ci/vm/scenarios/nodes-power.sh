#: about three machines, two of which lose power in turn, with disks that lose their cache
#: timeout 500
#: nodes 3
#: boots 2
#: cpus 1
#: memory 768
#: disk store 1024MiB volatile
#: example trilith-e2e nbd_attach
. /h/volume.sh
. /h/parts.sh
net_up
volume_disk store
if [ "$BOOT" = 1 ]; then
    format /disk/replica $((NODE - 1)) 3 256MiB
    sync
fi
replica $((NODE - 1)) --dir /disk/replica --listen "10.77.0.1$NODE:7000"
if [ "$NODE" != 1 ]; then
    # The run ends with node 1.
    sleep 900
fi

engine 256MiB --replica 0=10.77.0.11:7000 --replica 1=10.77.0.12:7000 --replica 2=10.77.0.13:7000
wait_for 120 engine_is healthy
nbd_attach
mkfs.ext4 -q $NBD
mount $NBD /mnt
say "three nodes are healthy"
for node in 2 3; do
    verify /mnt/file-$node 24 --bs=4k &
    load=$!
    sleep 3
    power_cycle $node
    wait_for 60 engine_is degraded
    wait $load
    wait_for 180 engine_is healthy
    say "node $node lost its power and is back, the file system went on"
done
umount /mnt
filesystem_is_clean $NBD ext4
verify $NBD 8
nbd_detach
engine_end
