#!/bin/sh
# Every check of the CUDA back end, on a machine with an NVIDIA GPU: the unit tests, the daemon end to end, errors
# beside those of transformers, the memory checker, and last the benchmarks; or those of them that are named:
#
#	tests/gpu/run.sh [units] [e2e] [peers] [sanitizers] [table] [sockets]
#
# Runs the programs of ./build, or of the folder in MAMBA2D_BUILD, which "make && make tests/check_cuda
# tests/check_products tests/bench_forward" leaves there.  What the machine has not (pytest with pyzmq, msgpack and
# NumPy; PyTorch with transformers; compute-sanitizer and nvcc) is skipped, and said.  Ends with the line "stages: N
# passed, N failed, N skipped"; exit status 0 if none failed, 77 without a GPU.
set -eu
cd "$(dirname "$0")/../.."

MAMBA2D_BUILD=$(cd "${MAMBA2D_BUILD:-build}" && pwd)
MAMBA2D_DEVICE=cuda
PYTHONDONTWRITEBYTECODE=1
export MAMBA2D_BUILD MAMBA2D_DEVICE PYTHONDONTWRITEBYTECODE
PATH=$PATH:/usr/local/cuda/bin
check=$MAMBA2D_BUILD/tests/check_cuda
log=$(mktemp)
plain=$(mktemp --suffix=.so)
trap 'rm -f "$log" "$plain"' EXIT

passed=0
failed=0
skipped=0

# stage NAME COMMAND...: run it; its output is shown where it fails.
stage() {
	name=$1
	shift
	start=$(date +%s)
	printf '%-34s' "$name"
	if "$@" >"$log" 2>&1; then
		passed=$((passed + 1))
		echo "passed, $(($(date +%s) - start)) s: $(tail -n 1 "$log")"
	else
		failed=$((failed + 1))
		echo "FAILED, $(($(date +%s) - start)) s"
		tail -n 60 "$log"
	fi
}

skip() {
	skipped=$((skipped + 1))
	printf '%-34sskipped: %s\n' "$1" "$2"
}

end_to_end() {
	python3 -m pytest -q tests/e2e/test_gpu.py tests/e2e/test_golden.py tests/e2e/test_choppings.py \
		tests/e2e/test_streams.py tests/e2e/test_ecg.py
}

# Under compute-sanitizer: the kernels of ours that the filter, an option and its value, lets in.  Products are plain
# ones: racecheck does not survive cuBLAS's kernels, and they are NVIDIA's to check.
sanitize() {
	CK_RUN_CASE=kernels compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 --target-processes all \
		"$2" "$3" env LD_PRELOAD="$plain" "$check"
}

status=0
CK_RUN_CASE=none "$check" >"$log" 2>&1 || status=$?
if [ "$status" = 77 ]; then
	cat "$log"
	exit 77
fi
asked=" ${*:-units e2e peers sanitizers table sockets} "

asked() {
	case $asked in *" $1 "*) ;; *) return 1 ;; esac
}

if asked units; then
	stage "unit tests" "$check"
	stage "products of few rows" "$MAMBA2D_BUILD/tests/check_products"
fi
if asked e2e; then
	if python3 -c 'import pytest, zmq, msgpack, numpy' 2>/dev/null; then
		stage "end to end" end_to_end
	else
		skip "end to end" "python3 has no pytest, zmq, msgpack or numpy"
	fi
fi
if asked peers; then
	if python3 -c 'import torch, transformers, safetensors' 2>/dev/null; then
		stage "bfloat16 beside transformers" tests/bench_peers.py "$MAMBA2D_BUILD" --skip times --skip ssd
	else
		skip "bfloat16 beside transformers" "python3 has no torch, transformers or safetensors"
	fi
fi
if asked sanitizers; then
	if command -v compute-sanitizer >/dev/null && command -v nvcc >/dev/null; then
		nvcc -std=c++17 -shared -Xcompiler -fPIC -o "$plain" tests/gpu/plain_products.cu
		for tool in memcheck initcheck; do
			stage "$tool" sanitize "$tool" --kernel-name-exclude kns=multiply
		done
		# The kernels with shared memory, one after another: racecheck does not survive all of them at once.
		for kernel in add_norm_rows prepare_chunks prepare_many product_few scan_heads ssd_heads ssd_outputs ssd_segments \
			ssd_states; do
			stage "racecheck $kernel" sanitize racecheck --kernel-name "kns=$kernel"
		done
	else
		skip "compute-sanitizer" "not installed, or no nvcc for products that it gets along with"
	fi
fi
if asked table; then
	echo
	tests/bench_table.py --device cuda "$MAMBA2D_BUILD/tests/bench_forward"
fi
if asked sockets; then
	if python3 -c 'import zmq, msgpack, numpy' 2>/dev/null; then
		echo
		python3 tests/bench_sockets.py
	else
		skip "sockets" "python3 has no zmq, msgpack or numpy"
	fi
fi
echo
echo "stages: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
