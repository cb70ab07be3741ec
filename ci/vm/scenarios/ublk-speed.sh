#: about ublk by figures: one volume of one replica over ublk, nbd and iSCSI, without and with --spin
#: timeout 400
#: memory 2048
#: peer libublk 0.4.8 loop
# Prints figures and fails on none.
. /h/volume.sh
. /h/iscsi.sh
. /h/speed.sh
modprobe nbd
VOLUME=/tmp/vol
iscsi_up

# frontends SUFFIX ARGUMENTS...: measures all three.
frontends() {
    local suffix=$1
    shift
    ublk_start --iscsi $PORTAL "$@"
    # Where nothing was written a replica answers without a look at its file.
    dd if=/dev/urandom of=$UBLK bs=1M count=64 oflag=direct status=none
    nbd-client 127.0.0.1 10809 $NBD -N vol -b 4096 > /h/out/nbd-client
    wait_for 20 nbd_is_there
    iscsi_discover
    iscsi_login
    ENGINE=$(process engine)
    # The engine carries it, unless it was told --apart.
    REPLICA=$(process replica || echo self)
    for _ in $(seq $ROUNDS); do
        measure ublk$suffix $UBLK
        measure nbd$suffix $NBD
        measure iscsi$suffix "$(iscsi_device)"
    done
    compare ublk$suffix nbd$suffix
    compare ublk$suffix iscsi$suffix
    for name in ublk nbd iscsi; do
        cost $name$suffix
    done
    ENGINE=self
    REPLICA=self
    iscsi_logout
    nbd-client -d $NBD > /dev/null
    volume_stop
}
frontends "" --size 256MiB --replicas 1
frontends -spin --spin 1ms
compare ublk-spin ublk

# The same file without replication.
if peer_add loop --backing_file $VOLUME/replica-0/vol.data; then
    for _ in $(seq $ROUNDS); do
        measure libublk-loop /dev/ublkb1
    done
    peer_del loop
    compare ublk libublk-loop
fi
