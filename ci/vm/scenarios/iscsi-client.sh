#: about the kernel's iSCSI initiator: digests, verified I/O, file systems, discard, engine killed
#: timeout 400
#: memory 1536
#: disk store 4096MiB
. /h/volume.sh
volume_disk store
volume_start --size 512MiB --iscsi 127.0.0.1:3260
for module in iscsi_tcp sd_mod sg crc32c_intel crc32c-cryptoapi; do
    modprobe $module || true
done
echo InitiatorName=iqn.2026-11.guest:one > /etc/iscsi/initiatorname.iscsi
# No service manager starts the daemon here. Requests wait two minutes for a session to come back.
sed -i 's/^iscsid.startup.*//; s/^\(node.session.timeo.replacement_timeout\).*/\1 = 120/' \
    /etc/iscsi/iscsid.conf
mkdir -p /run/lock/iscsi
setsid iscsid -f > /h/out/iscsid.log 2>&1 < /dev/null &

discovered() {
    iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260 > /h/out/discovery
}

# The block device of the session.
device() {
    lsblk -dnSo NAME,TRAN | awk '$2 == "iscsi" { print "/dev/" $1; found = 1; exit } END { exit !found }'
}

digest() {
    iscsiadm -m node -o update -n "node.conn[0].iscsi.HeaderDigest" -v "$1"
    iscsiadm -m node -o update -n "node.conn[0].iscsi.DataDigest" -v "$1"
    iscsiadm -m node --login > /dev/null
    wait_for 30 device
    iscsiadm -m session -P 2 > /h/out/session
    [ "$(grep -c "Digest: $1" /h/out/session)" = 2 ]
}

wait_for 60 discovered
say "$(cat /h/out/discovery)"
digest CRC32C
say "digests are on"
verify "$(device)" 8
iscsiadm -m node --logout > /dev/null
digest None
disk=$(device)
cat "/sys/block/${disk##*/}/queue/write_cache" | grep -q "write back"
verify "$disk" 16
filesystem "$disk" ext4
filesystem "$disk" xfs
say "verified without digests, file systems are clean"
blkdiscard -f "$disk"
reads_zero "$disk" 32
say "discarded"

# The engine dies under load: the initiator logs in again and repeats what was in flight.
verify "$disk" 48 --bs=4k &
load=$!
for _ in 1 2; do
    sleep 3
    kill_process engine
done
wait $load
say "verified through two engines that were killed"
wait_for 60 volume_is healthy
iscsiadm -m node --logout > /dev/null
volume_stop
