#: about a file system in use while replicas are killed and stopped
#: timeout 400
#: memory 1536
#: disk store 4096MiB
#: example trilith-e2e nbd_attach
. /h/volume.sh
volume_disk store
volume_start --size 512MiB
nbd_attach
mkfs.ext4 -q $NBD
mount $NBD /mnt
verify /mnt/file 48 --bs=4k &
load=$!
for member in 0 1 2; do
    sleep 1
    kill_process "replica.*replica-$member"
done
say "each replica was killed once"
stopped=$(process "replica.*replica-1")
kill -STOP "$stopped"
sleep 15
kill -CONT "$stopped"
say "a replica hung for 15 s"
wait $load
cp -a /usr/sbin /mnt/tree
wait_for 120 volume_is healthy
umount /mnt
filesystem_is_clean $NBD ext4
mount $NBD /mnt
diff -r --no-dereference /usr/sbin /mnt/tree
umount /mnt
nbd_detach
volume_stop
for member in 0 1 2; do
    trilith store check $VOLUME/replica-$member
    trilith store export $VOLUME/replica-$member $VOLUME/image-$member
done
cmp $VOLUME/image-0 $VOLUME/image-1
cmp $VOLUME/image-0 $VOLUME/image-2
