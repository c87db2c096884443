#!/usr/bin/env python3
"""Run bench_forward for every line of a table and print it as Markdown, with the ratios to limits of the same run.

    bench_table.py BENCH_FORWARD [--device cpu|cuda] [--shape NAME] [--seconds S]

cpu: matmul/peak is operations of the model's matrix products over the time of the whole forward pass, by the peak of the
same run; memory is the time that reading the weights once and reading and writing every cache once would take at the
measured bandwidth, by the time of the forward pass.
cuda: a pass by itself, on average, and with two under way; the model's matrix products alone under a graph, as the
device runs them, its in_proj padded, and of the model's own widths; moving weights and caches once at the rate of a
device copy; and the ratios of the second to each of these.
"""
import argparse
import json
import subprocess

# streams, window, windows queued, threads (0: all)
CPU_LINES = [(1, 256, 1, 0), (4, 64, 1, 0), (16, 16, 1, 0), (16, 1, 1, 0), (1, 1, 1, 0), (1, 256, 1, 1),
             (1, 256, 256, 0)]
CPU_NAMES = ["precision", "S x L", "threads", "rows/s", "ms", "ms, median", "matmul GFLOP/s", "peak GFLOP/s",
             "matmul/peak", "matmul alone, ms", "read GB/s", "memory"]

# shape, streams, window, windows queued
GPU_LINES = [("130m", 64, 256, 1), ("780m", 64, 256, 1), ("2.7b", 16, 256, 1), ("codestral-7b", 16, 256, 1),
             ("130m", 1, 256, 1), ("130m", 1, 1, 1), ("130m", 512, 1, 1), ("2.7b", 64, 1, 1), ("130m", 1, 256, 256)]
GPU_NAMES = ["model, S x L", "ms", "ms, two under way", "products alone, ms", "of own widths, ms",
             "weights and caches moved, ms", "ratios", "copy TB/s", "a layer between its products, ms"]


def run(program, **options):
    command = [program] + [str(word) for key, value in options.items() for word in ("--" + key, value)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def moved_ms(r):
    """Reading the weights, and reading and writing the caches, at the measured rate."""
    return 1e3 * (r["weight_bytes"] + 2 * r["streams"] * r["cache_bytes"]) / r["limit_bytes_per_s"]


def line(cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(names):
    line(names)
    print("|" + "---|" * len(names))


def show_cpu(r):
    line([r["precision"], f"{r['streams']} x {r['window'] * r['windows']}", r["threads"], f"{r['rows_per_s']:.0f}",
          f"{r['ms_per_forward']:.2f}", f"{r['ms_median']:.2f}", f"{r['matmul_gflops']:.0f}",
          f"{r['limit_matmul_gflops']:.0f}", f"{r['matmul_gflops'] / r['limit_matmul_gflops']:.2f}",
          f"{r['matmul_only_ms']:.2f}", f"{r['limit_bytes_per_s'] / 1e9:.1f}",
          f"{moved_ms(r) / r['ms_per_forward']:.2f}"])


def show_gpu(r):
    floors = r["matmul_only_ms"], r["model_widths_ms"], moved_ms(r)
    line([f"{r['shape']}, {r['streams']} x {r['window'] * r['windows']}", f"{r['ms_mean']:.3g}",
          f"{r['ms_overlapped']:.3g}", *(f"{floor:.3g}" for floor in floors),
          ", ".join(f"{r['ms_overlapped'] / floor:.2f}" for floor in floors), f"{r['limit_bytes_per_s'] / 1e12:.2f}",
          f"{r['mixer_ms']:.3f}"])


def cpu_table(options):
    head(CPU_NAMES)
    for precision in "float32", "bfloat16":
        for streams, window, windows, threads in CPU_LINES:
            show_cpu(run(options.program, shape=options.shape or "130m", precision=precision, streams=streams,
                         window=window, windows=windows, threads=threads, seconds=options.seconds))


def gpu_table(options):
    head(GPU_NAMES)
    for shape, streams, window, windows in GPU_LINES:
        if options.shape in (None, shape):
            show_gpu(run(options.program, device="cuda", shape=shape, precision="bfloat16", streams=streams,
                         window=window, windows=windows, seconds=options.seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    (cpu_table if options.device == "cpu" else gpu_table)(options)


if __name__ == "__main__":
    main()
