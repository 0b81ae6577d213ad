#!/bin/sh
# Puts a current criu into a folder of its own (default /opt/criu) on a Debian machine, beside what the system has: the packages
# of Debian's unstable suite and all that they need, down to the C library, are unpacked there and not installed. The mirror is the
# one that this machine's apt uses. PREFIX/criu is then the command.
set -eu
prefix=${1:-/opt/criu}
if [ -x "$prefix/criu" ] && "$prefix/criu" --version >/dev/null 2>&1; then
    echo "criu is in $prefix"
    exit 0
fi
command -v apt-get >/dev/null || { echo "criu: only Debian is known here; install criu 4.2 or later by other means" >&2; exit 1; }
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || { echo "criu: apt has no Debian mirror yet; run apt-get update first" >&2; exit 1; }
architecture=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/new"
: >"$work/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror sid main" >"$work/sources.list"
apt() {
    apt-get -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/nonexistent -o Dir::State::lists="$work/lists" \
        -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}
apt update >"$work/log" 2>&1 && apt install -y --no-install-recommends --download-only criu >>"$work/log" 2>&1 || {
    tail -n 3 "$work/log" >&2
    exit 1
}
for package in "$work"/cache/archives/*.deb; do dpkg -x "$package" "$work/new"; done
libraries=$(dirname "$(find "$work/new/usr/lib" -name 'libprotobuf-c.so.1' | head -n 1)")
libraries=${libraries#"$work/new"}
loader=$(cd "$work/new$libraries" && ls ld-linux*.so.*)
cat >"$work/new/criu" <<WRAPPER
#!/bin/sh
exec $prefix$libraries/$loader --library-path $prefix$libraries $prefix/usr/sbin/criu "\$@"
WRAPPER
chmod +x "$work/new/criu"
[ ! -e "$prefix" ] || [ -e "$prefix/criu" ] || rmdir "$prefix" || { echo "criu: $prefix holds something else" >&2; exit 1; }
rm -rf "$prefix"
mkdir -p "$(dirname "$prefix")"
cp -a "$work/new" "$prefix"
chmod 755 "$prefix"
"$prefix/criu" --version | head -n 1
echo "criu for $architecture is in $prefix"
