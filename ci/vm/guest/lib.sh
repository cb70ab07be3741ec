# For all scenarios. A scenario ends at the first command that fails (set -e), and has passed when it
# comes to its end. There is no udev: modules are loaded by name, and nobody makes links in /dev/disk.
set -Eeuo pipefail
export PATH=/h/bin:$PATH
trap 'echo "FAILED at line $LINENO of ${BASH_SOURCE[0]##*/}: $BASH_COMMAND"' ERR

# say TEXT: a line on the terminal of who runs the scenario.
say() {
    echo "GUEST-SAY $*"
}

# Where the log goes, for functions whose own output is thrown away.
exec 3>&1

# fail TEXT: the end, with what hangs in the kernel.
fail() {
    local task
    echo "FAILED: $*" >&3
    for task in /proc/[0-9]*/task/*; do
        if grep -q '^State:[[:space:]]*[DZ]' "$task/status" 2> /dev/null; then
            echo "$task $(cat "$task/comm"): $(tr '\n' ' ' < "$task/stack")" >&3
        fi
    done
    exit 1
}

# power_cut: the machine is off at once; with the next boot, BOOT is one more and /h/before holds this
# boot's console. What must be known then is printed before.
power_cut() {
    echo GUEST-CUT
    sleep 60
    fail "the power is still on"
}

# power_cycle NODE: cuts the power of another node and boots it again.
power_cycle() {
    echo "GUEST-CUT $1"
}

# link NODE up|down: changes the network link of a node from outside.
link() {
    echo "GUEST-LINK $1 $2"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    local until=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $until ] || fail "waited for: $*"
        sleep 0.2
    done
}

# disk NAME: the device of a disk that the scenario's head names.
disk() {
    local block
    for block in /sys/block/vd*; do
        if [ "$(cat "$block/serial")" = "$1" ]; then
            echo "/dev/${block##*/}"
            return
        fi
    done
    fail "no disk $1"
}

# net_up: the node's card gets its address, 10.77.0.1N.
net_up() {
    local card
    modprobe virtio_net
    for card in /sys/class/net/*; do
        if [ "$(cat "$card/address")" = "52:54:00:77:00:0$NODE" ]; then
            CARD=${card##*/}
        fi
    done
    ip addr add "10.77.0.1$NODE/24" dev "$CARD"
    ip link set "$CARD" up
}
