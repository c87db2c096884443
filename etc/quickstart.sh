#!/bin/sh
# From a fresh Debian 12 to hidden states: install packages, build in ./build, run the daemon on the ECG recording.
# Run it as root, or where sudo works.  Leaves build/ecg/ecg.png and the hidden states beside it.
set -eu
cd "$(dirname "$0")/.."

sh etc/install-packages.sh --example

echo "building in $PWD/build"
[ -x configure ] || ./autogen.sh >/dev/null 2>&1
mkdir -p build/ecg
(
	cd build
	[ -f Makefile ] || ../configure -q CFLAGS="${CFLAGS--O3}"
	make -s -j "$(nproc)" mamba2d mamba2ctl
)

sockets=$(mktemp -d)
daemon=
consumer=
finish() {
	for process in $consumer $daemon; do
		kill "$process" 2>/dev/null || true
	done
	rm -rf "$sockets"
}
trap finish EXIT
trap 'exit 1' INT TERM

# Wait until a command succeeds, for up to 30 seconds; give up when the process that it waits for has ended.
wait_until() {
	process=$1
	shift
	for _ in $(seq 300); do
		if "$@" >/dev/null 2>&1; then
			return 0
		fi
		kill -0 "$process" 2>/dev/null || break
		sleep 0.1
	done
	echo "quickstart: gave up waiting for: $*" >&2
	cat build/ecg/*.log >&2
	exit 1
}

build/mamba2d -s model=etc/examples/ecg -s window=45 -s "sockets.ingest=ipc://$sockets/ingest" \
	-s "sockets.publish=ipc://$sockets/publish" -s "sockets.control=ipc://$sockets/control" -s metrics.listen= 2>build/ecg/mamba2d.log &
daemon=$!
wait_until "$daemon" build/mamba2ctl status --control "ipc://$sockets/control"

export PYTHONPATH="$PWD/protocol/python"
/usr/bin/python3 etc/examples/ecg/consume.py --publish "ipc://$sockets/publish" --out build/ecg \
	--check etc/examples/ecg/prediction_error.npy >build/ecg/consume.log 2>&1 &
consumer=$!
wait_until "$consumer" grep -q subscribed build/ecg/consume.log

echo "streaming five minutes of ECG at 60 times their speed"
/usr/bin/python3 etc/examples/ecg/publish.py --ingest "ipc://$sockets/ingest" --speed 60
if ! wait "$consumer"; then
	cat build/ecg/consume.log >&2
	exit 1
fi
consumer=
kill "$daemon"
wait "$daemon"
daemon=

tail -n +2 build/ecg/consume.log
cat <<END

What happened: build/mamba2d loaded the Mamba-2 checkpoint in etc/examples/ecg. publish.py sent it the recording, one
row for every 8 samples; the daemon ran windows of 45 rows (a second) through the model, each from the cache that the
one before had left, and published the hidden states. consume.py predicted every next 8 samples from them.

  $PWD/build/ecg/ecg.png              the ECG, and where the prediction failed
  $PWD/build/ecg/hidden_states.npy    float32 [13500, 64]
  $PWD/build/ecg/prediction_error.npy float32 [13499], equal to the one-shot result within 1e-4
  $PWD/build/ecg/mamba2d.log          what the daemon said

Next: build/mamba2d --help, and README.md.
END
