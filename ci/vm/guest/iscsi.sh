# For scenarios with the kernel's iSCSI initiator.

PORTAL=127.0.0.1:3260
CONF=/etc/iscsi/iscsid.conf

# iscsi_up: modules and the daemon, which no service manager starts here. Requests wait two minutes for
# a session to come back.
iscsi_up() {
    local module
    for module in iscsi_tcp sd_mod sg crc32c_intel crc32c-cryptoapi; do
        modprobe $module || true
    done
    echo InitiatorName=iqn.2026-11.guest:one > /etc/iscsi/initiatorname.iscsi
    sed -i 's/^iscsid.startup.*//; s/^\(node.session.timeo.replacement_timeout\).*/\1 = 120/' $CONF
    mkdir -p /run/lock/iscsi
    setsid iscsid -f > /h/out/iscsid.log 2>&1 < /dev/null &
}

# iscsi_set KEY VALUE: for discoveries, and targets that are discovered, from now on.
iscsi_set() {
    sed -i "/^$1 = /d" $CONF
    printf '%s = %s\n' "$1" "$2" >> $CONF
}

# iscsi_discover [ARGUMENTS...]: asks the portal for its targets.
iscsi_discover() {
    wait_for 60 iscsi_discovers "$@"
    say "$(head -n 1 /h/out/discovery)"
}

iscsi_discovers() {
    iscsiadm -m discovery -t sendtargets -p $PORTAL "$@" > /h/out/discovery
}

# iscsi_login: to what was discovered, until the disk is there.
iscsi_login() {
    iscsiadm -m node --login > /dev/null
    wait_for 30 iscsi_device
}

iscsi_logout() {
    iscsiadm -m node --logout > /dev/null
}

# iscsi_device: the block device of the session, or of the first of several.
iscsi_device() {
    lsblk -dnSo NAME,TRAN | awk '$2 == "iscsi" { print "/dev/" $1; found = 1; exit } END { exit !found }'
}

# iscsi_digests KIND: header and data, in the next session.
iscsi_digests() {
    iscsiadm -m node -o update -n "node.conn[0].iscsi.HeaderDigest" -v "$1"
    iscsiadm -m node -o update -n "node.conn[0].iscsi.DataDigest" -v "$1"
}

# iscsi_has_digests KIND: the session that there is.
iscsi_has_digests() {
    iscsiadm -m session -P 2 > /h/out/session
    [ "$(grep -c "Digest: $1" /h/out/session)" = 2 ]
}
