#!/bin/bash
# The node's daemons; process 1 of the namespaces that up.sh made. `node.sh FOLDER`.
set -uo pipefail
W=$1
S=$W/state
export PATH="$W/bin:$W/root/usr/sbin:$W/root/usr/bin:$PATH" KUBECONFIG="$S/admin.conf" HOME="$S"
export LD_LIBRARY_PATH=$(echo "$W"/root/usr/lib/*-linux-gnu)
# What the daemons insist on writing outside their folders is thrown away with this mount namespace.
for folder in /run /var/lib /var/log /etc/cni; do [ ! -d "$folder" ] || mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/lock /var/lib/kubelet
sysctl -qw net.ipv4.ip_forward=1

daemon() { # NAME ARGUMENTS...: kept running, as systemd would
    local name=$1
    shift
    while :; do "$name" "$@" >>"$S/log/$name" 2>&1; echo "$name ended: $?"; sleep 1; done &
}

daemon dockerd --data-root "$S/docker" --exec-root /run/docker --pidfile /run/docker.pid -H "unix://$S/docker.sock" \
    --bip 172.30.0.1/24 --storage-driver overlay2 --log-level warn --default-runtime oci --add-runtime "oci=$W/bin/oci" \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /ekiben-node/docker --userland-proxy=false
daemon etcd --data-dir "$S/etcd" --log-level error
until [ -S "$S/docker.sock" ] && docker -H "unix://$S/docker.sock" info >/dev/null 2>&1; do sleep 0.2; done
# dockerd lets nobody from outside come to a container: here the tests ask pods at their own addresses.
iptables -P FORWARD ACCEPT
# The container that holds a pod's namespaces: catatonit does nothing but wait and reap.
tar -C "$(dirname "$(command -v catatonit)")" -c catatonit |
    docker -H "unix://$S/docker.sock" import --change 'ENTRYPOINT ["/catatonit","-P"]' - localhost/pause:1 >/dev/null

pki() { printf -- '%s\n' "$1=$S/pki/$2"; }
daemon kube-apiserver --etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range=10.96.0.0/16 --advertise-address=10.201.0.2 \
    --authorization-mode=RBAC "$(pki --client-ca-file ca.crt)" "$(pki --tls-cert-file server.crt)" "$(pki --tls-private-key-file server.key)" \
    "$(pki --service-account-key-file accounts.key)" "$(pki --service-account-signing-key-file accounts.key)" \
    --service-account-issuer=https://kubernetes.default.svc --kubelet-preferred-address-types=InternalIP \
    "$(pki --kubelet-client-certificate admin.crt)" "$(pki --kubelet-client-key admin.key)"
daemon kube-controller-manager --kubeconfig="$KUBECONFIG" --leader-elect=false --use-service-account-credentials \
    "$(pki --root-ca-file ca.crt)" "$(pki --service-account-private-key-file accounts.key)"
daemon kube-scheduler --kubeconfig="$KUBECONFIG" --leader-elect=false
# masquerade-all: a pod's answer to another pod of the same bridge comes back the way it went.
daemon kube-proxy --kubeconfig="$KUBECONFIG" --proxy-mode=iptables --masquerade-all --hostname-override=node \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
# No eviction for the disk's sake: the disk is the machine's. Sockets of plugins and CSI are not used.
daemon kubelet --kubeconfig="$KUBECONFIG" --container-runtime=docker --docker-endpoint="unix://$S/docker.sock" --network-plugin= \
    --hairpin-mode=none --pod-infra-container-image=localhost/pause:1 --cgroup-driver=cgroupfs --cgroup-root=/ekiben-node \
    --enforce-node-allocatable= --oom-score-adj=0 --max-open-files=20000 --fail-swap-on=false --root-dir="$S/kubelet" \
    --cert-dir="$S/kubelet/pki" --volume-plugin-dir="$S/kubelet/plugins" --hostname-override=node --node-ip=10.201.0.2 \
    --cluster-dns=172.30.0.1 --cluster-domain=cluster.local --resolv-conf= --image-gc-high-threshold=100 \
    --eviction-hard='memory.available<100Mi' --authorization-mode=AlwaysAllow "$(pki --client-ca-file ca.crt)"

# Names of services: dnsmasq reads the folder anew when a file in it changes. Headless services have no name here.
daemon dnsmasq --keep-in-foreground --no-resolv --no-hosts --hostsdir="$S/hosts" --listen-address=172.30.0.1 --bind-interfaces \
    --local=/cluster.local/ --user=root --pid-file= --log-facility=-
until kubectl get --raw=/readyz >/dev/null 2>&1; do sleep 0.3; done
while :; do
    kubectl get services --all-namespaces --watch --no-headers \
        -o custom-columns=A:.metadata.namespace,B:.metadata.name,C:.spec.clusterIP 2>/dev/null |
        while read -r namespace name address; do
            [ "$address" = None ] || echo "$address $name.$namespace.svc.cluster.local" >"$S/hosts/$namespace.$name"
        done
    sleep 1
done
