# For scenarios that measure. Figures are of a guest that is emulated, so only ratios within one run mean
# anything. What is compared is measured in turns, so that what else the host does meets all of it.

ROUNDS=${ROUNDS:-2}
SPAN=${SPAN:-3}

# ticks: of 10 ms, so far: of the engine, of the replica, of the whole guest.
ticks() {
    awk '{ print $14 + $15 }' "/proc/$ENGINE/stat" "/proc/$REPLICA/stat" | tr '\n' ' '
    awk '$1 == "cpu" { print $2 + $3 + $4 + $7 + $8 }' /proc/stat
}
ENGINE=self
REPLICA=self

# measure NAME DEVICE: requests a second, random reads and writes of 4 KiB at depth 16; and what they cost.
measure() {
    local kind before
    for kind in randread randwrite; do
        before=$(ticks)
        fio --name="$1" --filename="$2" --direct=1 --ioengine=io_uring --bs=4k --iodepth=16 --rw=$kind --size=64m \
            --runtime=$SPAN --time_based --allow_file_create=0 --thread=1 --output-format=json > /tmp/fio
        jq -r --arg name "$1" --arg kind $kind --arg ticks "$before $(ticks)" \
            '"\($name) \($kind) \(.jobs[0] | .read.iops + .write.iops | floor) \($ticks) \(.jobs[0] | .read.total_ios + .write.total_ios)"' \
            < /tmp/fio >> /h/out/figures
    done
}

# cost NAME: microseconds of processors a request, of the engine, the replica and the whole guest (with fio).
cost() {
    say "$1 costs a request $(awk -v name="$1" '$1 == name {
        engine += $7 - $4; replica += $8 - $5; all += $9 - $6; count += $10
    } END {
        printf "%d us in the engine, %d in the replica, %d in all", engine * 10000 / count, replica * 10000 / count,
            all * 10000 / count
    }' /h/out/figures)"
}

# figure NAME KIND: the mean of its rounds.
figure() {
    awk -v name="$1" -v kind="$2" '$1 == name && $2 == kind { sum += $3; count++ }
        END { if (count) printf "%d", sum / count }' /h/out/figures
}

# compare NAME OTHER: how much faster the first is.
compare() {
    local kind ours others
    for kind in randread randwrite; do
        ours=$(figure "$1" $kind)
        others=$(figure "$2" $kind)
        [ -n "$ours" ] && [ -n "$others" ] || continue
        say "$kind: $1 $ours, $2 $others a second: ratio $(awk "BEGIN { printf \"%.2f\", $ours / $others }")"
    done
}

# peer_add NAME ARGUMENTS...: a device of a program of libublk's, as /dev/ublkb1. False without libublk.
peer_add() {
    command -v "libublk-$1" > /dev/null || return 1
    "libublk-$1" add --number 1 --queues 1 --depth 128 "${@:2}" > /h/out/peer 2>&1 < /dev/null
    wait_for 20 test -b /dev/ublkb1
}

peer_del() {
    "libublk-$1" del --number 1 > /h/out/peer 2>&1
}
