#!/bin/sh
# The fuzzers, one after the other, with AddressSanitizer and UBSan: builds them with clang in build-tests/fuzz.  What they
# find lies there as crash-*; the corpora that they grew are there as well, and tests/corpus stays as it is.
#
#	tests/fuzz.sh [SECONDS [NAME...]]     SECONDS for each (60); NAME: message, config, ... (all)
set -eu
cd "$(dirname "$0")/.."
build="build-tests/fuzz"
seconds=${1:-60}
[ $# = 0 ] || shift
[ $# != 0 ] || set -- message config safetensors index state yaml rights

[ -x configure ] || ./autogen.sh
mkdir -p "$build"
cd "$build"
[ -f Makefile ] || ../../configure -q CC=clang CFLAGS="-g -O1" --enable-fuzzing --enable-sanitizers --without-cuda
for name in "$@"; do
	make -s -j "$(nproc)" "tests/fuzz_$name"
done
for name in "$@"; do
	mkdir -p "corpus/$name"
	echo "== $name"
	"tests/fuzz_$name" -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 "corpus/$name" \
		"../../tests/corpus/$name" >"$name.log" 2>&1 || { tail -n 60 "$name.log"; exit 1; }
	grep -E 'DONE|number_of_executed' "$name.log"
done
