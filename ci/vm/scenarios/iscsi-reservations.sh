#: about two of the kernel's iSCSI initiators that fight over a persistent reservation
#: timeout 240
#: memory 1536
. /h/volume.sh
. /h/iscsi.sh
VOLUME=/tmp/vol
volume_start --size 64MiB --nbd off --iscsi $PORTAL
iscsi_up
# Each interface is an initiator of its own.
for name in one two; do
    iscsiadm -m iface -I $name --op new
    iscsiadm -m iface -I $name --op update -n iface.transport_name -v tcp
    iscsiadm -m iface -I $name --op update -n iface.initiatorname -v iqn.2026-11.guest:$name
done
iscsi_discover -I one -I two
iscsiadm -m node --login > /dev/null

# disk_of NAME: the disk that an initiator sees.
disk_of() {
    iscsiadm -m session -P 3 | awk -v name="iqn.2026-11.guest:$1" '
        /Iface Initiatorname:/ { ours = $3 == name }
        /Attached scsi disk/ && ours { print "/dev/" $4; found = 1; exit }
        END { exit !found }'
}

wait_for 30 disk_of one
wait_for 30 disk_of two
a=$(disk_of one)
b=$(disk_of two)
[ "$a" != "$b" ]
say "two initiators, $a and $b"

# reserve DISK ARGUMENTS...: PERSISTENT RESERVE OUT.
reserve() {
    sg_persist --out "${@:2}" "$1" >> /h/out/reservations 2>&1
}

writes() {
    dd if=/dev/urandom of="$1" bs=4k count=1 seek=8 oflag=direct status=none 2>> /h/out/writes
}

reads() {
    dd if="$1" of=/dev/null bs=4k count=1 iflag=direct status=none 2>> /h/out/writes
}

# only_writer NAME DISK OTHER: who may write, and who may not.
only_writer() {
    writes "$2" || fail "$1 cannot write"
    ! writes "$3" || fail "it is not only $1 that writes"
    reads "$3" || fail "the other cannot read"
    say "$1 writes, the other only reads"
}

writes "$a"
writes "$b"
reserve "$a" --register --param-sark=0xa
# Write exclusive, registrants only.
reserve "$a" --reserve --param-rk=0xa --prout-type=5
only_writer one "$a" "$b"
if reserve "$b" --clear --param-rk=0xb; then
    fail "who is not registered has cleared it"
fi
if reserve "$b" --reserve --param-rk=0xb --prout-type=5; then
    fail "who is not registered has reserved it"
fi
reserve "$b" --register --param-sark=0xb --param-aptpl
writes "$b"
say "registered, the other writes too"

# The second takes it from the first, whose registration goes.
reserve "$b" --preempt --param-rk=0xb --param-sark=0xa --prout-type=5
only_writer two "$b" "$a"
sg_persist --in --read-keys "$a" | tee /h/out/keys
grep -q 0xb /h/out/keys
! grep -q '0xa$' /h/out/keys
sg_persist --in --read-reservation "$a" | grep -q 'Write Exclusive, registrants only'

# It was to outlive a power loss, so it outlives an engine.
kill_process engine
wait_for 60 volume_is healthy
wait_for 60 reads "$b"
only_writer two "$b" "$a"

# Exclusive access: not even reading. Given back, all may again.
reserve "$b" --release --param-rk=0xb --prout-type=5
writes "$a"
reserve "$b" --reserve --param-rk=0xb --prout-type=3
! writes "$a" || fail "the other writes"
! reads "$a" || fail "the other reads"
reserve "$a" --register --param-sark=0xc
reserve "$a" --clear --param-rk=0xc
writes "$a"
writes "$b"
say "cleared, all write"
iscsi_logout
volume_stop
