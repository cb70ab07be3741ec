# For scenarios that start replicas and engine themselves: replicas on block devices, or on several
# nodes.

ID=0123456789abcdef0123456789abcdef
SECRET=/run/secret
EPOCH=0
umask 077
printf '%032d' 7 > $SECRET
umask 022

# format PATH MEMBER REPLICAS SIZE: a new store.
format() {
    trilith store format "$1" --volume $ID --member "$2" --replicas "$3" --size "$4"
}

# replica MEMBER --device PATH|--dir PATH --listen ADDRESS: runs it, again and again, in the
# background. `replica_end MEMBER` ends that.
replica() {
    local member=$1
    shift
    rm -f "/run/replica-$member.stop"
    (
        trap - ERR
        set +e
        until [ -e "/run/replica-$member.stop" ]; do
            trilith replica "$@" --secret-file $SECRET --admin "unix:/run/replica-$member.admin" \
                >> "/h/out/replica-$member.log" 2>&1 < /dev/null &
            echo $! > "/run/replica-$member.pid"
            wait $!
            echo "replica $member ended with status $?" >> "/h/out/replica-$member.log"
            rm -f "/run/replica-$member.sock" "/run/replica-$member.admin"
            sleep 0.5
        done
        touch "/run/replica-$member.ended"
    ) < /dev/null > /dev/null 2>&1 &
}

# replica_end MEMBER: SIGTERM, and no new one.
replica_end() {
    rm -f "/run/replica-$1.ended"
    touch "/run/replica-$1.stop"
    kill -TERM "$(cat "/run/replica-$1.pid")" 2> /dev/null || true
    wait_for 60 test -e "/run/replica-$1.ended"
}

# engine SIZE --replica N=ADDRESS...: runs one with the next attach epoch in the background.
engine() {
    local size=$1
    shift
    EPOCH=$((EPOCH + 1))
    rm -f /run/engine.admin
    setsid trilith engine --volume $ID --size "$size" --secret-file $SECRET --attach-epoch $EPOCH \
        --nbd 127.0.0.1:10809 --admin unix:/run/engine.admin "$@" >> /h/out/engine.log 2>&1 < /dev/null &
    ENGINE=$!
}

engine_end() {
    kill -TERM $ENGINE
    wait $ENGINE
}

# engine_says FILTER: true if jq says so of the engine's status.
engine_says() {
    curl -s --max-time 5 --unix-socket /run/engine.admin http://engine/status | jq -e "$1"
}

engine_is() {
    engine_says ".state == \"$1\""
}
