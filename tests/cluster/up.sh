#!/bin/bash
# Start a Kubernetes node of one machine from what build.sh made: `W=FOLDER tests/cluster/up.sh`. down.sh takes it away.
# It lives in its own network, mount and process namespaces, so that its iptables, bridges and mounts are not the machine's.
# Then: KUBECONFIG=$W/state/admin.conf kubectl get nodes. Services' addresses (10.96.0.0/16) are routed from here.
set -euo pipefail
: "${W:?W is the folder that build.sh filled}"
here=$(cd "$(dirname "$0")" && pwd)
W=$(cd "$W" && pwd)
[ "$(id -u)" = 0 ] || { echo "up.sh: must be root" >&2; exit 1; }
[ -x "$W/bin/kubelet" ] || { echo "up.sh: no $W/bin/kubelet: run build.sh first" >&2; exit 1; }
[ ! -e "$W/state/pid" ] || { echo "up.sh: $W/state/pid exists: down.sh first" >&2; exit 1; }
trap '[ $? = 0 ] || { echo "up.sh: not started; see $W/state/log" >&2; W=$W "$here/down.sh"; }' EXIT
mkdir -p "$W"/state/{log,pki,hosts,kubelet,docker,etcd}

# The host's end of the wire to the node, 10.201.0.1; services and pods are behind 10.201.0.2.
ip netns add ekiben-node
ip link add ekn0 type veth peer name eth0 netns ekiben-node
ip addr add 10.201.0.1/30 dev ekn0
ip link set ekn0 up
ip -n ekiben-node link set lo up
ip -n ekiben-node addr add 10.201.0.2/30 dev eth0
ip -n ekiben-node link set eth0 up
ip -n ekiben-node route add default via 10.201.0.1
ip route add 10.96.0.0/16 via 10.201.0.2
ip route add 172.30.0.0/24 via 10.201.0.2

# kubelet sets these for the whole machine; down.sh puts them back.
for key in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    echo "$key $(cat /proc/sys/$key)"
done >"$W/state/tunables"
for controller in /sys/fs/cgroup/*/; do mkdir -p "${controller}ekiben-node"; done

# One CA; everybody on the node is its admin, pods have service accounts under RBAC.
cd "$W/state/pki"
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=ekiben-node-ca -keyout ca.key -out ca.crt 2>/dev/null
issue() { # NAME SUBJECT EXTENSIONS
    openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile <(echo "$3") -out "$1.crt" 2>/dev/null
}
issue server /CN=kube-apiserver "subjectAltName=DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:kubernetes,IP:10.96.0.1,IP:10.201.0.2,IP:127.0.0.1"
issue admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
openssl genrsa -out accounts.key 2048 2>/dev/null
export KUBECONFIG=$W/state/admin.conf
kubectl config set-cluster node --server=https://10.201.0.2:6443 --certificate-authority=ca.crt --embed-certs >/dev/null
kubectl config set-credentials admin --client-certificate=admin.crt --client-key=admin.key --embed-certs >/dev/null
kubectl config set-context node --cluster=node --user=admin >/dev/null
kubectl config use-context node >/dev/null

# setsid: the node outlives this shell and does not hear its signals. --kill-child: it dies with the one process down.sh ends.
setsid nsenter --net=/run/netns/ekiben-node unshare --mount --propagation private --pid --fork --mount-proc --kill-child \
    bash "$here/node.sh" "$W" </dev/null >"$W/state/log/node" 2>&1 &
echo $! >"$W/state/pid"
for _ in $(seq 240); do
    kubectl wait --for=condition=Ready node/node --timeout=1s >/dev/null 2>&1 && break
    [ -e "/proc/$(cat "$W/state/pid")" ] || exit 1
    sleep 0.5
done
kubectl wait --for=condition=Ready node/node --timeout=1s
