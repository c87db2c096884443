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
[ $# != 0 ] || set -- message config safetensors index state yaml rights keys npy ctl streams peers

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
	case $name in
	streams | peers) limits="-max_len=1000 -len_control=0 -timeout=1000000 -report_slow_units=1000000" ;;
	*) limits="-max_len=4096 -max_total_time=$seconds" ;;
	esac
	# The clock of a whole daemon is a fake one, and it blocks the signals that would end it: those are killed.
	# shellcheck disable=SC2086
	timeout -s KILL $((seconds + 10)) "tests/fuzz_$name" $limits "corpus/$name" "../../tests/corpus/$name" \
		>"$name.log" 2>&1 || [ $? = 137 ] || { tail -n 60 "$name.log"; exit 1; }
	grep '^#[0-9]' "$name.log" | tail -n 1
done
