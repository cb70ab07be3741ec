#: about the kernel's iSCSI initiator: digests, verified I/O, file systems, discard, engine killed
#: timeout 400
#: memory 1536
#: disk store 4096MiB
. /h/volume.sh
. /h/iscsi.sh
volume_disk store
volume_start --size 512MiB --iscsi $PORTAL
iscsi_up
iscsi_discover
iscsi_digests CRC32C
iscsi_login
iscsi_has_digests CRC32C
verify "$(iscsi_device)" 8
say "verified with digests"
iscsi_logout
iscsi_digests None
iscsi_login
iscsi_has_digests None
disk=$(iscsi_device)
grep -q "write back" "/sys/block/${disk##*/}/queue/write_cache"
client_checks "$disk"
engines_die "$disk"
iscsi_logout
volume_stop
stores_are_sound
