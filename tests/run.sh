#!/bin/sh
# Every test: installs what is missing (as root, or with sudo), builds in ./build-tests, and ends with the line
# "stages: N passed, N failed".  Exit status 0 only if none failed.
set -eu
cd "$(dirname "$0")/.."

sh etc/install-packages.sh --tests
./autogen.sh >/dev/null 2>&1

jobs=$(nproc)
passed=0
failed=0

# stage NAME COMMAND...: run it; its output is shown where it fails.
stage() {
	name=$1
	shift
	start=$(date +%s)
	printf '%-34s' "$name"
	if "$@" >build-tests/log 2>&1; then
		passed=$((passed + 1))
		result=passed
	else
		failed=$((failed + 1))
		result=FAILED
	fi
	echo "$result, $(($(date +%s) - start)) s$(summary)"
	if [ "$result" = FAILED ]; then
		tail -n 200 build-tests/log
	fi
}

# What a test runner said last of how many tests it ran.
summary() {
	grep -E '^(=+ )?[0-9]+ (passed|failed)|^# (TOTAL|PASS):|^SKIPPED:' build-tests/log |
		tail -n 2 | tr '\n=' '  ' | sed 's/^ */: /; s/ *$//'
}

# build FOLDER CONFIGURE-ARGUMENT...: the programs and the unit tests, warnings being errors.
build() {
	folder=build-tests/$1
	shift
	rm -rf "$folder"
	mkdir -p "$folder"
	(cd "$folder" && ../../configure --enable-werror "$@" && make -j "$jobs" all && make -j "$jobs" check TESTS=)
}

# pytest FOLDER ARGUMENT...: the end-to-end tests against the programs built there.
e2e() {
	folder=$1
	shift
	MAMBA2D_BUILD=$PWD/build-tests/$folder PYTHONDONTWRITEBYTECODE=1 \
		timeout 1200 /usr/bin/python3 -m pytest -q -n "$jobs" tests/e2e "$@"
}

# Without those of AVX-512, which valgrind does not know, and the long comparisons of check_cpu and of check_cpu_vector,
# of which the first would take it most of an hour; the sanitizers see all of these.  A test that exits with 77 has
# nothing to test on this machine.
unit_tests_in_valgrind() {
	find build-tests/gcc/tests -name "check_*" ! -name "*avx512*" ! -name "*determinism" -type f -executable -print0 |
		xargs -0 -P "$jobs" -I TEST sh -c '
			case TEST in
			*/check_cpu) export CK_RUN_CASE=device ;;
			*/check_cpu_vector_*) export CK_RUN_CASE=functions ;;
			esac
			CK_FORK=no valgrind --quiet --error-exitcode=9 --leak-check=full TEST || [ $? = 77 ]'
}

shell_scripts() {
	shellcheck autogen.sh .ci/run etc/*.sh tests/*.sh tests/gpu/*.sh tests/systemd/*.sh tests/packages/*.sh
}

# What `make soak`, `make overload` and `make chaos` do at length.
short_forms() {
	export MAMBA2D_BUILD="$PWD/build-tests/gcc" PYTHONDONTWRITEBYTECODE=1
	/usr/bin/python3 tests/reliability/soak.py --windows 50000 --state-dir &&
		/usr/bin/python3 tests/reliability/overload.py --seconds 10 &&
		/usr/bin/python3 tests/reliability/chaos.py --faults 15 --freeze 1
}

# What `make network` does at length; 77: not without root and TUN devices.
bad_network() {
	MAMBA2D_BUILD="$PWD/build-tests/gcc" PYTHONDONTWRITEBYTECODE=1 \
		/usr/bin/python3 tests/reliability/network.py --seconds 0.5 --partition 1 || [ $? = 77 ]
}

# Without the unit tests, which have run before.
packages() {
	DEB_BUILD_OPTIONS=nocheck make -C build-tests/gcc deb && lintian --fail-on error build-tests/gcc/deb/*.changes
}

mkdir -p build-tests
# a small quarantine: there are tests that measure the daemon's memory
export ASAN_OPTIONS=detect_stack_use_after_return=1:quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp"

stage "shell scripts" shell_scripts
stage "build with gcc" build gcc
stage "layers" make -C build-tests/gcc layers
stage "unit tests" make -j "$jobs" -C build-tests/gcc check
stage "cppcheck and clang-tidy" tests/lint.sh build-tests/gcc
stage "end to end" e2e gcc
stage "unit tests in valgrind" unit_tests_in_valgrind
stage "build with clang and sanitizers" build sanitizers CC=clang --enable-sanitizers --without-cuda
stage "unit tests with sanitizers" make -j "$jobs" -C build-tests/sanitizers check
stage "end to end with sanitizers" e2e sanitizers -m "not native"
stage "build with clang, threads" build threads CC=clang --enable-sanitizers=thread --without-cuda
stage "end to end with threads" e2e threads -m "not native"
stage "soak, overload and chaos" short_forms
stage "bad network" bad_network
stage "distribution" make -j "$jobs" -C build-tests/gcc distcheck DISTCHECK_CONFIGURE_FLAGS=--without-cuda
stage "packages" packages

echo "stages: $passed passed, $failed failed"
[ "$failed" = 0 ]
