#!/bin/sh
# Line coverage of the C sources by the unit tests and the end-to-end tests: builds in build-tests/coverage, and prints a
# line for each file.  With arguments, only the end-to-end tests that pytest selects by them.
#
#	tests/coverage.sh [PYTEST-ARGUMENT...]
set -eu
cd "$(dirname "$0")/.."
build="build-tests/coverage"

[ -x configure ] || ./autogen.sh
mkdir -p "$build"
find "$build" -name '*.gcda' -delete
(
	cd "$build"
	[ -f Makefile ] || ../../configure -q --without-cuda CFLAGS="-Og -g --coverage"
	make -s -j "$(nproc)" all check
) >"$build.log" 2>&1 || { tail -n 50 "$build.log"; exit 1; }
export MAMBA2D_BUILD="$PWD/$build" PYTHONDONTWRITEBYTECODE=1
pytest="/usr/bin/python3 -m pytest -q -n $(nproc)"
$pytest -m "not native" tests/e2e "$@" || true
cd tests/e2e
$pytest -m native test_calls_fail.py test_ctl.py test_scarcity.py "$@" || true # not for sanitizers
cd ../..
/usr/bin/python3 tests/coverage.py "$build"
