#!/bin/sh
# The units under a real systemd: builds mamba2d for /usr, boots a minimal Debian 12 with it in a container, and lets
# inside.sh try it there.  Needs root, and the packages debootstrap and systemd-container.
#
#	tests/systemd/run.sh [ROOT]     ROOT: the folder of the Debian, made if missing (default: build-tests/systemd-root)
set -eu
cd "$(dirname "$0")/../.."
build="build-tests/systemd"
root=${1:-build-tests/systemd-root}
packages=systemd,systemd-sysv,dbus,procps,gdb-minimal,libzmq5,libmsgpackc2,libyaml-0-2,libjansson4,libxxhash0,libsystemd0
packages=$packages,libmicrohttpd12

mkdir -p "$build"
[ -x configure ] || ./autogen.sh
(
	cd "$build"
	[ -f Makefile ] || ../../configure -q --prefix=/usr --sysconfdir=/etc --without-cuda
	make -s -j "$(nproc)"
)
[ -e "$root/usr/bin/systemd" ] || [ -e "$root/usr/lib/systemd/systemd" ] ||
	debootstrap --variant=minbase --include="$packages" bookworm "$root"

make -s -C "$build" install DESTDIR="$(realpath "$root")" >/dev/null
rm -rf "$root/srv/mamba2d" "$root/var/lib/private" "$root/var/lib/mamba2d" "$root/var/log/journal" "$root/trial"
mkdir -p "$root/srv/mamba2d" "$root/etc/mamba2d" "$root/trial"
cp -r tests/golden/seed-46032 "$root/srv/mamba2d/model"
sed 's,^model:.*,model: /srv/mamba2d/model,' "$build/etc/mamba2d.yaml" >"$root/etc/mamba2d/mamba2d.yaml"
sed 's/570/580/; s/:9464/:9465/; s,/var/lib/mamba2d,/var/lib/mamba2d-second,' "$root/etc/mamba2d/mamba2d.yaml" \
	>"$root/etc/mamba2d/second.yaml"
/usr/bin/python3 - "$root/trial" <<'END'
import sys, numpy
numpy.save(sys.argv[1] + "/rows.npy", numpy.random.default_rng(1).normal(size=(1000, 64)).astype("f4"))
numpy.save(sys.argv[1] + "/narrow.npy", numpy.zeros((3, 63), "f4"))
END
tests/container.sh "$root" tests/systemd/inside.sh 300
