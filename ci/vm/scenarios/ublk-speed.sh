#: about one volume of one replica over ublk, the kernel's nbd client and its iSCSI initiator, side by side
#: timeout 300
#: memory 1536
#: example trilith-frontend-ublk file
# Prints figures and fails on none: a guest is emulated, so only ratios mean anything.
for module in ublk_drv nbd iscsi_tcp sd_mod sg; do
    modprobe $module
done
UBLK=/dev/ublkb0
NBD=/dev/nbd0

# measure NAME DEVICE: requests a second, random reads and writes of 4 KiB at depth 16.
measure() {
    local kind
    for kind in randread randwrite; do
        fio --name="$1" --filename="$2" --direct=1 --ioengine=io_uring --bs=4k --iodepth=16 --rw=$kind --size=64m \
            --runtime=6 --time_based --allow_file_create=0 --output-format=json > /h/out/"$1-$kind"
        jq -r --arg name "$1" --arg kind $kind \
            '"GUEST-SAY \($name) \($kind) \(.jobs[0] | .read.iops + .write.iops | floor) a second"' < /h/out/"$1-$kind"
    done
}

file --size $((256 << 20)) > /tmp/null 2>&1 < /dev/null &
null=$!
wait_for 20 grep -q '^live' /tmp/null
measure null $UBLK
kill -TERM $null
wait $null

trilith up --dir /tmp/volume --size 256MiB --replicas 1 --ublk --nbd 127.0.0.1:10809 --iscsi 127.0.0.1:3260 \
    > /tmp/up 2> /h/out/up-log < /dev/null &
up=$!
wait_for 60 grep -q 'is the block device' /tmp/up
dd if=/dev/urandom of=$UBLK bs=1M count=64 oflag=direct status=none

nbd-client 127.0.0.1 10809 $NBD -N vol -b 4096 > /h/out/nbd-client
wait_for 20 bash -c "[ \$(blockdev --getsize64 $NBD) -gt 0 ]"

echo InitiatorName=iqn.2026-11.guest:one > /etc/iscsi/initiatorname.iscsi
sed -i 's/^iscsid.startup.*//' /etc/iscsi/iscsid.conf
mkdir -p /run/lock/iscsi
setsid iscsid -f > /h/out/iscsid.log 2>&1 < /dev/null &
discover() {
    iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260 > /h/out/discovery
}
wait_for 60 discover
iscsiadm -m node --login > /dev/null
scsi() {
    lsblk -dnSo NAME,TRAN | awk '$2 == "iscsi" { print "/dev/" $1; found = 1; exit } END { exit !found }'
}
wait_for 30 scsi

measure ublk $UBLK
measure nbd $NBD
measure iscsi "$(scsi)"
measure ublk-again $UBLK

iscsiadm -m node --logout > /dev/null
nbd-client -d $NBD > /dev/null
kill -TERM $up
wait $up
