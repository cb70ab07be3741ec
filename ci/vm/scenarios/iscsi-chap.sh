#: about the kernel's iSCSI initiator: CHAP both ways with digests, and a target that comes back from a kill and from a stop
#: timeout 300
#: memory 1536
. /h/volume.sh
. /h/iscsi.sh
VOLUME=/tmp/vol
umask 077
echo "initiator-name initiator-secret" > /run/chap
echo "target-name target-secret-1" > /run/mutual
umask 022
serve=(--size 256MiB --nbd off --iscsi $PORTAL --iscsi-chap-file /run/chap --iscsi-mutual-chap-file /run/mutual)
volume_start "${serve[@]}"
iscsi_up
for part in discovery.sendtargets node.session; do
    iscsi_set $part.auth.authmethod CHAP
    iscsi_set $part.auth.username initiator-name
done
iscsi_set discovery.sendtargets.auth.password a-wrong-secret
iscsi_set node.session.auth.password a-wrong-secret
if iscsi_discovers 2> /h/out/refused; then
    fail "discovered with a wrong secret"
fi
grep -q 'authorization failure' /h/out/refused || fail "$(cat /h/out/refused)"
iscsi_set discovery.sendtargets.auth.password initiator-secret
iscsi_discover

# refused WHAT: this login must not succeed.
refused() {
    if iscsiadm -m node --login > /h/out/refused 2>&1; then
        fail "logged in with $1"
    fi
    # By the target, or by the initiator.
    grep -q 'authorization failure\|non-retryable iSCSI login failure' /h/out/refused ||
        fail "$1: $(cat /h/out/refused)"
    ! iscsi_device || fail "a disk with $1"
}

secret() {
    iscsiadm -m node -o update -n "node.session.auth.$1" -v "$2"
}

refused "a wrong secret"
secret password initiator-secret
secret username_in target-name
secret password_in another-secret
refused "a target that does not know its secret"
secret password_in target-secret-1
iscsi_digests CRC32C
iscsi_login
iscsi_has_digests CRC32C
iscsiadm -m session -P 2 | grep -q 'username: initiator-name'
disk=$(iscsi_device)
verify "$disk" 8
filesystem "$disk" ext4
say "verified with CHAP both ways and digests"

# The whole target is away for a while, killed or stopped cleanly, and comes back: requests wait.
target_is_away() {
    local load
    verify "$disk" 32 --bs=4k &
    load=$!
    sleep 3
    "$1"
    kill -0 $load || fail "the load was over before the target"
    sleep 5
    volume_start "${serve[@]}"
    wait $load
}

target_is_away everything_dies
say "verified through a target that was killed and started again"
target_is_away volume_stop
say "verified through a target that was stopped and started again"
engines_die "$disk"
iscsi_has_digests CRC32C
iscsi_logout
volume_stop
stores_are_sound
if dmesg | grep 'I/O error'; then
    fail "a request failed"
fi
