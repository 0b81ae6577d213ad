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

image() { # name, packages
	SOURCE_DATE_EPOCH=315532800 mmdebstrap --quiet --variant=minbase --include="$2" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$work/root.tar" "$sources" >"$work/log" 2>&1 ||
		{ tail -5 "$work/log" >&2; exit 1; }
	container=$(buildah from scratch)
	buildah add --quiet "$container" "$work/root.tar" / >/dev/null
	buildah config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
	buildah commit --quiet --rm --timestamp 315532800 "$container" "$1"
}

image "$1" python3,ca-certificates,libgomp1,libnuma1,tini
image "$2" python3,python3-venv,binutils,ca-certificates
