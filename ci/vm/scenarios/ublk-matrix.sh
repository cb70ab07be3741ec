#: about ublk with several queues: every block size from 512 bytes to 1 MiB at depths 1 to 64, direct and buffered
#: timeout 400
#: memory 2048
#: cpus 4
. /h/volume.sh
VOLUME=/tmp/vol
ublk_start --size 256MiB --ublk-queues 4 --nbd off --iscsi off
[ "$(find /sys/block/ublkb0/mq -mindepth 1 -maxdepth 1 | wc -l)" = 4 ] || fail "expected four queues"

# Each job writes blocks at random, then reads them back and compares. One process runs them all, for
# starting one takes a second here; two at once, so that more than one queue is in use.
jobs=0
{
    printf '[global]\nfilename=%s\nverify=crc32c\nverify_fatal=1\nrw=randwrite\nthread=1\nstonewall\n' $UBLK
    printf 'numjobs=2\noffset_increment=64m\nallow_file_create=0\nrandrepeat=0\n'
    size=512
    while [ $size -le $((1 << 20)) ]; do
        bytes=$((size * 64))
        if [ $bytes -gt $((4 << 20)) ]; then
            bytes=$((4 << 20))
        fi
        for depth in 1 4 16 64; do
            printf '[direct-%s-%s]\ndirect=1\nioengine=io_uring\nbs=%s\niodepth=%s\nsize=%s\n' \
                $size $depth $size $depth $bytes
            jobs=$((jobs + 2))
        done
        printf '[buffered-%s]\ndirect=0\nioengine=psync\nbs=%s\nsize=%s\nend_fsync=1\ninvalidate=1\n' \
            $size $size $bytes
        jobs=$((jobs + 2))
        size=$((size * 2))
    done
} > /h/out/jobs
fio --output-format=json /h/out/jobs > /h/out/fio 2>&1 || fail "$(tail -n 3 /h/out/fio)"
# After its warnings: two jobs on one device, in parts of their own.
sed -n '/^{/,$p' /h/out/fio > /tmp/fio
[ "$(jq '.jobs | length' < /tmp/fio)" = $jobs ] || fail "not all jobs have run"
[ "$(jq '[.jobs[] | select(.error != 0 or .read.total_ios == 0 or .write.total_ios == 0)] | length' \
    < /tmp/fio)" = 0 ] || fail "a job has an error or did nothing"
say "$jobs jobs with twelve block sizes verified"

# Random reads and writes mixed, all sizes at once, on all queues.
fio --name=mixed --filename=$UBLK --direct=1 --ioengine=io_uring --rw=randrw --bsrange=512-1m --iodepth=64 \
    --numjobs=4 --offset_increment=32m --size=8m --verify=crc32c --verify_fatal=1 --allow_file_create=0 \
    --thread=1 --minimal > /h/out/fio-mixed 2>&1 || fail "mixed: $(tail -n 3 /h/out/fio-mixed)"
volume_stop
stores_are_sound
kernel_is_content
