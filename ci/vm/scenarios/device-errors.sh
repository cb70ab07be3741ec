#: about replicas on block devices: one whose writes fail is demoted, and no client sees it
#: timeout 400
#: memory 1536
#: disk r0 320MiB
#: disk r1 320MiB
#: disk r2 320MiB
#: example trilith-e2e nbd_attach
. /h/volume.sh
. /h/parts.sh
modprobe dm-mod
modprobe dm-flakey

# table MEMBER good|bad-writes|dead: what the member's device does from now on.
table() {
    local device sectors text
    device=$(disk "r$1")
    sectors=$(blockdev --getsz "$device")
    case $2 in
        good) text="0 $sectors linear $device 0" ;;
        bad-writes) text="0 $sectors flakey $device 0 0 3600 1 error_writes" ;;
        dead) text="0 $sectors error" ;;
    esac
    if [ -e "/dev/mapper/r$1" ]; then
        dmsetup suspend --noudevsync --noflush "r$1"
        dmsetup load "r$1" --table "$text"
        dmsetup resume --noudevsync "r$1"
    else
        dmsetup create --noudevsync "r$1" --table "$text"
        dmsetup mknodes
    fi
}

in_sync() {
    engine_says ".members[$1].role == \"in-sync\""
}

out_of_sync() {
    engine_says ".members[$1].role != \"in-sync\""
}

members=()
for member in 0 1 2; do
    table $member good
    format /dev/mapper/r$member $member 3 256MiB
    trilith store check /dev/mapper/r$member
    replica $member --device /dev/mapper/r$member --listen unix:/run/replica-$member.sock
    members+=(--replica "$member=unix:/run/replica-$member.sock")
done
engine 256MiB "${members[@]}"
wait_for 120 engine_is healthy
nbd_attach
filesystem $NBD ext4
say "a file system on three devices"

for fault in bad-writes dead; do
    member=1
    [ $fault = dead ] && member=2
    verify $NBD 32 --bs=4k &
    load=$!
    sleep 1
    table $member $fault
    wait_for 60 out_of_sync $member
    wait $load
    say "member $member with $fault is out, the client saw nothing"
    table $member good
    wait_for 120 in_sync $member
    wait_for 120 engine_is healthy
    verify $NBD 8
    say "it is back"
done

nbd_detach
engine_end
mount -t tmpfs tmpfs /mnt
for member in 0 1 2; do
    replica_end $member
    trilith store check /dev/mapper/r$member
    trilith store export /dev/mapper/r$member /mnt/image-$member
done
cmp /mnt/image-0 /mnt/image-1
cmp /mnt/image-0 /mnt/image-2
