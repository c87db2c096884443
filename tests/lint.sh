#!/bin/sh
# cppcheck and clang-tidy over the C sources; silence means that they found nothing.
#
#	tests/lint.sh BUILD     BUILD: a folder where mamba2d was built
set -eu
build=$(realpath "${1:-build}")
cd "$(dirname "$0")/.."
jobs=$(nproc)
# __FILE__ is a string: which one does not matter here.
flags="-I. -I$build -D_GNU_SOURCE -DCPU_X86 -DPACKAGE_VERSION=__FILE__ -DPACKAGE_STRING=__FILE__"

# shellcheck disable=SC2086 # flags are words
cppcheck --quiet -j "$jobs" --std=c11 --enable=warning,performance,portability --error-exitcode=1 \
	--suppressions-list=tests/cppcheck.txt $flags -DCPU_PATH=plain daemon protocol model gpu

# The kernels of the CPU are compiled with flags of their own; gpu/ needs CUDA's headers.
# shellcheck disable=SC2016 # the inner shell expands them
find daemon protocol model -name '*.c' | grep -vE 'cpu_(product|rows|conv|chunk|scan)\.c' |
	xargs -P "$jobs" -n 4 sh -c \
		'clang-tidy --quiet --config-file=tests/clang-tidy.yaml "$@" -- -std=c11 $0 2>/dev/null' "$flags"
