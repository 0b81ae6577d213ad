#!/bin/bash
# Take the node of up.sh away, with all it made on the machine: `W=FOLDER tests/cluster/down.sh`. The binaries stay.
set -uo pipefail
: "${W:?W is the folder that build.sh filled}"
W=$(cd "$W" && pwd)
# Process 1 of the namespace dies with this one, and with it every daemon and container.
[ ! -e "$W/state/pid" ] || kill -KILL "$(cat "$W/state/pid")" 2>/dev/null
for _ in $(seq 100); do
    [ -z "$(cat /sys/fs/cgroup/*/ekiben-node/cgroup.procs /sys/fs/cgroup/*/ekiben-node/*/*/*/cgroup.procs 2>/dev/null)" ] && break
    sleep 0.1
done
ip netns del ekiben-node 2>/dev/null
ip link del ekn0 2>/dev/null
for _ in 1 2 3; do
    find /sys/fs/cgroup/*/ekiben-node -depth -type d -exec rmdir {} + 2>/dev/null
    sleep 0.3
done
[ ! -e "$W/state/tunables" ] || while read -r key value; do echo "$value" 2>/dev/null >"/proc/sys/$key"; done <"$W/state/tunables"
rm -rf --one-file-system "$W/state"
left=$(find /sys/fs/cgroup/*/ekiben-node -maxdepth 0 2>/dev/null; ip -o link show ekn0 2>/dev/null)
[ -z "$left" ] || { echo "down.sh: still there: $left" >&2; exit 1; }
