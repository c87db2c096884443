#!/usr/bin/env python3
"""Run the CPU table: bench_forward for every line below, as a Markdown table with the ratios to the machine's limits.

    bench_table.py BENCH_FORWARD [--shape NAME] [--seconds S]

matmul/peak: operations of the model's matrix products over the time of the whole forward pass, by the peak of the
same run.  memory: the time that reading the weights once and reading and writing every cache once would take at the
measured bandwidth, by the time of the forward pass.
"""
import argparse
import json
import subprocess

# streams, window, windows queued, threads (0: all)
LINES = [(1, 256, 1, 0), (4, 64, 1, 0), (16, 16, 1, 0), (16, 1, 1, 0), (1, 1, 1, 0), (1, 256, 1, 1), (1, 256, 256, 0)]


def run(program, shape, seconds, precision, line):
    streams, window, windows, threads = line
    command = [program, "--shape", shape, "--precision", precision, "--streams", streams, "--window", window,
               "--windows", windows, "--threads", threads, "--seconds", seconds]
    return json.loads(subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout)


def show(r):
    traffic = r["weight_bytes"] + 2 * r["streams"] * r["cache_bytes"]
    memory = traffic / r["limit_bytes_per_s"] / (1e-3 * r["ms_per_forward"])
    cells = [r["precision"], f"{r['streams']} x {r['window'] * r['windows']}", r["threads"], f"{r['rows_per_s']:.0f}",
             f"{r['ms_per_forward']:.2f}", f"{r['ms_median']:.2f}",
             f"{r['matmul_gflops']:.0f}", f"{r['limit_matmul_gflops']:.0f}",
             f"{r['matmul_gflops'] / r['limit_matmul_gflops']:.2f}",
             f"{r['matmul_only_ms']:.2f}", f"{r['limit_bytes_per_s'] / 1e9:.1f}", f"{memory:.2f}"]
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--shape", default="130m")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    names = ["precision", "S x L", "threads", "rows/s", "ms", "ms, median", "matmul GFLOP/s", "peak GFLOP/s",
             "matmul/peak", "matmul alone, ms", "read GB/s", "memory"]
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for precision in "float32", "bfloat16":
        for line in LINES:
            show(run(options.program, options.shape, options.seconds, precision, line))


if __name__ == "__main__":
    main()
