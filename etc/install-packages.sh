#!/bin/sh
# Install what Debian 12 lacks for building mamba2d; with --example also what the ECG example needs, with --tests what
# the tests need; those of the metrics and of the page over HTTP also use chromium and promtool (Debian: prometheus),
# where they are installed.  Does nothing where all of it is there, so that it needs neither root nor network then.
set -eu

packages="gcc libc6-dev make autoconf automake pkg-config libzmq3-dev libmsgpack-dev libyaml-dev libjansson-dev"
packages="$packages libxxhash-dev libsystemd-dev libmicrohttpd-dev"
python="python3 python3-zmq python3-msgpack python3-numpy python3-matplotlib"
for option in "$@"; do
	case $option in
	--example) packages="$packages $python" ;;
	--tests) packages="$packages $python python3-pytest python3-pytest-xdist python3-yaml check valgrind clang"
		packages="$packages libclang-rt-14-dev shellcheck xz-utils mandoc man-db debhelper dh-python"
		packages="$packages pybuild-plugin-pyproject python3-all build-essential python3-setuptools"
		packages="$packages lintian cppcheck clang-tidy" ;;
	*) echo "usage: $0 [--example] [--tests]" >&2; exit 2 ;;
	esac
done

missing=
for package in $packages; do
	if ! dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
		missing="$missing $package"
	fi
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
	as_root=sudo
fi
echo "installing:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086 # package names have no blanks
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
