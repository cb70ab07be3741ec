#: about the kernel's nbd client: verified I/O, file systems, discard, an engine that is killed
#: timeout 400
#: memory 1536
#: disk store 4096MiB
#: example trilith-e2e nbd_attach
. /h/volume.sh
volume_disk store
volume_start --size 512MiB
# Debian's client, which is what people use.
modprobe nbd nbds_max=4
nbd-client 127.0.0.1 10809 $NBD -N vol -b 4096 -C 2 > /h/out/nbd-client
wait_for 30 nbd_is_there
verify $NBD 4
nbd_detach
nbd_attach 2
say "attached"
queue=/sys/block/nbd0/queue
[ "$(cat $queue/write_cache)" = "write back" ]
[ "$(cat $queue/fua)" = 1 ]
[ "$(cat $queue/discard_max_bytes)" -gt 0 ]
verify $NBD 24
say "verified"
filesystem $NBD ext4
filesystem $NBD xfs
say "file systems are clean"
blkdiscard -f $NBD
reads_zero $NBD 64
say "discarded"

# The engine dies under load: another takes its place, the client gets new connections, and no request
# fails.
verify $NBD 48 --bs=4k &
load=$!
for _ in 1 2; do
    sleep 3
    kill_process engine
done
wait $load
say "verified through two engines that were killed"
wait_for 60 volume_is healthy
nbd_detach
volume_stop
for member in 0 1 2; do
    trilith store check $VOLUME/replica-$member
done
