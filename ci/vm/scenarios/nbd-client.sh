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
client_checks $NBD
engines_die $NBD
nbd_detach
volume_stop
stores_are_sound
