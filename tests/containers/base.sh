#!/bin/sh
# Make two images of Debian's packages, without any registry: what a box's image begins with, and with binutils what its Python
# environment is made in. Needs root, mmdebstrap and buildah.
#   base.sh BASE_NAME BUILD_NAME
set -eu
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
sources=/etc/apt/sources.list.d/debian.sources
[ -e "$sources" ] || sources=/etc/apt/sources.list
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

SOURCE_DATE_EPOCH=315532800 mmdebstrap --quiet --variant=minbase --include=python3,ca-certificates,libgomp1,libnuma1,tini \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$work/root.tar" "$sources" >"$work/log" 2>&1 ||
	{ tail -5 "$work/log" >&2; exit 1; }
container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root.tar" / >/dev/null
buildah config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit --quiet --rm --timestamp 315532800 "$container" "$1"

container=$(buildah from "$1")
buildah run --isolation chroot --network host "$container" -- sh -c \
	'apt-get update && apt-get install -y --no-install-recommends binutils python3-pip' >"$work/log" 2>&1 ||
	{ tail -5 "$work/log" >&2; exit 1; }
buildah commit --quiet --rm "$container" "$2"
