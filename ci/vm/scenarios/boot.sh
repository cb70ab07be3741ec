#: about the guest boots and runs our program
#: timeout 120
trilith --version
trilith store format /tmp/r --volume 0123456789abcdef0123456789abcdef --member 0 --replicas 1 --size 64MiB
trilith store check /tmp/r
for module in nbd ublk_drv iscsi_tcp dm-flakey dm-log-writes sch_netem xfs; do
    modprobe $module
done
