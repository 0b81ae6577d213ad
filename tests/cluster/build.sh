#!/bin/bash
# Build a real Kubernetes node for tests/cluster out of Debian's own packages: `W=FOLDER tests/cluster/build.sh`.
# Everything is unpacked and compiled under $W (about 4 GB, of which 0.6 GB stay); nothing is installed on the machine.
# Debian bookworm has Kubernetes as a source package (1.20), and dockerd and etcd as binaries. About ten CPU minutes.
set -euo pipefail
: "${W:?W is the folder to build in, such as W=/tmp/kube}"
JOBS=${JOBS:-2}
DAEMONS=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
command -v kubectl >/dev/null || DAEMONS+=(kubectl)
for tool in apt-get dpkg-source make podman buildah runc catatonit iptables; do
    command -v "$tool" >/dev/null || { echo "build.sh: $tool is missing; on Debian: apt-get install dpkg-dev make podman buildah runc catatonit iptables" >&2; exit 1; }
done
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$W"/{bin,debs/partial,lists/partial,root,home}
W=$(cd "$W" && pwd)

# 1. Debian's packages, unpacked aside: with what they need and this machine has not.
packages=(golang-1.19-go golang-github-modern-go-reflect2-dev etcd-server docker.io dnsmasq-base rsync jq conntrack socat)
apt-get -qq install --download-only --reinstall --no-install-recommends -y -o Dir::Cache::archives="$W/debs" "${packages[@]}" >/dev/null
for deb in "$W"/debs/*.deb; do dpkg -x "$deb" "$W/root"; done
export PATH="$W/root/usr/lib/go-1.19/bin:$W/root/usr/sbin:$W/root/usr/bin:$PATH"
export LD_LIBRARY_PATH="$W/root/usr/lib/x86_64-linux-gnu" GOROOT="$W/root/usr/lib/go-1.19" HOME="$W/home"

# 2. Kubernetes' source from the machine's own mirror: the same suites, sources instead of binaries.
if [ ! -d "$W/src" ]; then
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sources=$W/src.sources
        sed 's/^Types: .*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$sources"
    else
        sources=$W/src.list
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$sources"
    fi
    aside=(-o Dir::Etc::sourcelist="$sources" -o Dir::Etc::sourceparts=/nonexistent
        -o Dir::State::lists="$W/lists" -o Dir::Cache="$W/debs" -o Dir::Cache::archives="$W/debs")
    apt-get -qq "${aside[@]}" update
    (cd "$W/debs" && apt-get -qq "${aside[@]}" source --download-only kubernetes && dpkg-source --no-check -x kubernetes_*.dsc "$W/src.part" >/dev/null)
    # The vendored reflect2 1.0.1 crashes the API server under Go 1.19 at the first custom resource: Debian's 1.0.2 does not.
    vendored=$W/src.part/vendor/github.com/modern-go/reflect2
    cp "$W"/root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$vendored/"
    rm -f "$vendored"/go_above_17.go "$vendored"/go_below_17.go "$vendored"/go_below_19.go
    mv "$W/src.part" "$W/src"
fi

# 3. The daemons.
cd "$W/src"
mkdir -p .go/src/k8s.io
ln -sfn ../../.. .go/src/k8s.io/kubernetes
nice -n 19 make GOPATH="$PWD/.go" CGO_ENABLED=0 GOFLAGS="-p=$JOBS" WHAT="$(printf 'cmd/%s ' "${DAEMONS[@]}")"
built=$(find _output -path '*/linux/*/kubelet' -printf '%h\n' | head -n 1)
for daemon in "${DAEMONS[@]}"; do install -m 755 "$built/$daemon" "$W/bin/"; done
install -m 755 "$here/oci" "$W/bin/"
cd "$W"
chmod -R u+w "$W/src" && rm -rf "$W"/kubernetes_* "$W"/{src,debs,lists,home,src.*} "$W"/root/usr/{lib,share}/go-*
"$W/bin/kubelet" --version
