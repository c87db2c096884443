#!/bin/sh
# The Debian packages in a fresh Debian 12 under a real systemd: builds them, boots a minimal system in a container, and
# lets inside.sh install, start, upgrade, remove and purge them there.  Needs root, and the packages that
# etc/install-packages.sh --tests installs, debootstrap and systemd-container.
#
#	tests/packages/run.sh [BASE]     BASE: the folder of the Debian, made if missing (default: build-tests/debian)
set -eu
cd "$(dirname "$0")/../.."
build="build-tests/packages"
base=${1:-build-tests/debian}
root="$build/root"

mkdir -p "$build"
[ -x configure ] || ./autogen.sh
(
	cd "$build"
	[ -f Makefile ] || ../../configure -q --without-cuda
	DEB_BUILD_OPTIONS=nocheck make -s deb >deb.log 2>&1 || { tail -n 50 deb.log; exit 1; }
	lintian --fail-on error deb/*.changes
)

[ -e "$base/usr/lib/systemd/systemd" ] ||
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm "$base"
rm -rf "$root"
cp -a "$base" "$root"
mkdir "$root/trial"
cp "$build"/deb/mamba2d_*.deb "$root/trial/mamba2d.deb"
cp "$build"/deb/python3-mamba2d_*.deb "$root/trial/python3-mamba2d.deb"

# The same programs as a later version, to upgrade to.
dpkg-deb -R "$root/trial/mamba2d.deb" "$build/later"
sed -i 's/^Version: .*/&+later/' "$build/later/DEBIAN/control"
dpkg-deb --root-owner-group -b "$build/later" "$root/trial/later.deb" >/dev/null
rm -r "$build/later"

# What the packages depend on is fetched before; the container has no network.
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" sh -c 'apt-get -qq update && apt-get -qq -y install --no-install-recommends --download-only \
	/trial/mamba2d.deb /trial/python3-mamba2d.deb python3-matplotlib' >/dev/null

tests/container.sh "$root" tests/packages/inside.sh 500
