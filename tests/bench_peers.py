#!/usr/bin/env python3
"""On a GPU: our forward pass beside that of Hugging Face transformers, in one run.

    bench_peers.py BUILD [--seconds S] [--skip errors|times|ssd]...

errors: both in bfloat16 against the golden cases (float32, one pass): relative errors of the last hidden states.
times: milliseconds of a forward pass of S streams x L rows with caches carried on.  Ours is BUILD/tests/bench_forward,
rows from and to host memory with two passes under way; theirs starts and ends in device memory.  transformers takes its
fast path where mamba-ssm and causal-conv1d can be imported, and plain PyTorch elsewhere; which one is printed.
ssd: one layer of mamba-ssm's Triton kernels (mamba_chunk_scan_combined with initial and final states, the best of its
chunk sizes) beside ours, which also convolves and gates.  Only where mamba-ssm can be imported; Triton tunes each shape
for a minute or more the first time.

Needs PyTorch with CUDA, transformers and NumPy.  The exit status is 1 if an error of ours is larger than theirs.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers would look for kernels there, for a long time
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")

# hidden_size, layers, groups; heads of 64, states of 128
SHAPES = {"130m": (768, 24, 1), "780m": (1536, 48, 1), "2.7b": (2560, 64, 1), "codestral-7b": (4096, 64, 8)}

# shape, streams, rows
LINES = [("130m", 64, 256), ("780m", 64, 256), ("2.7b", 16, 256), ("codestral-7b", 16, 256), ("130m", 1, 256),
         ("130m", 1, 1), ("130m", 512, 1), ("2.7b", 64, 1)]
SSD_LINES = [("130m", 64, 256), ("2.7b", 16, 256), ("codestral-7b", 16, 256), ("130m", 256, 16)]


def table(*names):
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names), flush=True)


def line(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


# --- errors ----------------------------------------------------------------------------------------------------------

def relative_error(got, want):
    return np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64))


def encode_ours(build, folder, rows):
    with tempfile.TemporaryDirectory() as temporary:
        source, target = os.path.join(temporary, "in.npy"), os.path.join(temporary, "out.npy")
        np.save(source, rows)
        subprocess.run([os.path.join(build, "mamba2ctl"), "encode", "--model", folder, "--device", "cuda", "--precision",
                        "bfloat16", source, target], check=True, stdout=subprocess.DEVNULL)
        return np.load(target)


@torch.no_grad()
def encode_theirs(folder, rows):
    model = transformers.Mamba2Model.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    inputs = torch.from_numpy(rows)[None].to("cuda", torch.bfloat16)
    return model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0].float().cpu().numpy()


def compare_errors(build):
    """How many of the cases are worse in our hands."""
    worse = 0
    print("\nRelative error in bfloat16 against the golden cases:\n")
    table("case", "ours", "transformers", "ours / theirs")
    for case in sorted(name for name in os.listdir(GOLDEN) if os.path.isdir(os.path.join(GOLDEN, name))):
        folder = os.path.join(GOLDEN, case)
        golden = load_file(os.path.join(folder, "golden.safetensors"))
        rows, want = golden["inputs_embeds"], golden["last_hidden_state"]
        ours, theirs = (relative_error(got, want) for got in (encode_ours(build, folder, rows),
                                                              encode_theirs(folder, rows)))
        line(case, f"{ours:.2e}", f"{theirs:.2e}", f"{ours / theirs:.2f}")
        worse += ours > theirs
    return worse


# --- times -----------------------------------------------------------------------------------------------------------

def time_ours(build, shape, streams, rows, seconds):
    command = [os.path.join(build, "tests", "bench_forward"), "--device", "cuda", "--precision", "bfloat16", "--shape",
               shape, "--streams", streams, "--window", rows, "--seconds", seconds]
    return json.loads(subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout)


def make_theirs(shape):
    hidden_size, layers, groups = SHAPES[shape]
    config = transformers.Mamba2Config(hidden_size=hidden_size, num_hidden_layers=layers, n_groups=groups, head_dim=64,
                                       num_heads=2 * hidden_size // 64, state_size=128, vocab_size=16)
    with torch.device("cuda"):
        return transformers.Mamba2Model(config).to(torch.bfloat16).eval()


def time_calls(call, seconds):
    """The median of milliseconds, by the host's clock: what a caller waits for."""
    times, end = [], time.monotonic() + seconds
    while not times or (time.monotonic() < end and len(times) < 1000):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


@torch.no_grad()
def time_theirs(model, streams, rows, seconds):
    inputs = torch.randn(streams, rows, model.config.hidden_size, device="cuda", dtype=torch.bfloat16)
    try:
        cache = model(inputs_embeds=inputs, use_cache=True).cache_params
        forward = lambda: model(inputs_embeds=inputs, use_cache=True, cache_params=cache)
        forward()
        return f"{time_calls(forward, seconds):.2f}"
    except torch.cuda.OutOfMemoryError:
        return "out of memory"


def compare_times(build, seconds):
    from transformers.models.mamba2 import modeling_mamba2
    made = None, None
    print("\nMilliseconds of a forward pass in bfloat16, caches carried:\n")
    table("model, S x L", "ours, one at a time", "ours, two under way", "products alone", "transformers")
    for shape, streams, rows in LINES:
        ours = time_ours(build, shape, streams, rows, seconds)
        if made[0] != shape:
            made = None, None
            torch.cuda.empty_cache()
            made = shape, make_theirs(shape)
        line(f"{shape}, {streams} x {rows}", f"{ours['ms_mean']:.2f}", f"{ours['ms_overlapped']:.2f}",
             f"{ours['matmul_only_ms']:.2f}", time_theirs(made[1], streams, rows, seconds))
        torch.cuda.empty_cache()
    fast = getattr(modeling_mamba2, "is_fast_path_available", False)
    print(f"\ntransformers {transformers.__version__} on PyTorch {torch.__version__}, its",
          "fast path" if fast else "plain PyTorch path: no mamba-ssm with causal-conv1d here")


# --- the SSD alone ---------------------------------------------------------------------------------------------------

@torch.no_grad()
def time_triton(scan, shape, streams, rows, seconds):
    """The best chunk size's milliseconds under a graph, which leaves out what Python costs."""
    hidden_size, _, groups = SHAPES[shape]
    heads, best = 2 * hidden_size // 64, None
    half = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(streams, rows, heads, 64, **half)
    b, c = (torch.randn(streams, rows, groups, 128, **half) for _ in range(2))
    dt, states = torch.randn(streams, rows, heads, **half), torch.randn(streams, heads, 64, 128, device="cuda")
    a, d, bias = (-torch.rand(heads, device="cuda") - 0.5 for _ in range(3))
    for chunk in (64, 128, 256):
        call = lambda: scan(x, dt, a, b, c, chunk, D=d, dt_bias=bias, dt_softplus=True, initial_states=states,
                            return_final_states=True)
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        ms = time_calls(lambda: [graph.replay() for _ in range(20)], seconds / 3) / 20
        best = ms if best is None else min(best, ms)
    return best


def compare_ssd(build, seconds):
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError as error:
        print(f"\nmamba-ssm's Triton kernels are not here: {error}")
        return
    print("\nMilliseconds of one layer's SSD with states carried; ours with convolution and gate:\n")
    table("model, S x L", "ours", "mamba-ssm", "ours / theirs")
    for shape, streams, rows in SSD_LINES:
        ours = time_ours(build, shape, streams, rows, seconds)["mixer_ms"]
        theirs = time_triton(mamba_chunk_scan_combined, shape, streams, rows, seconds)
        line(f"{shape}, {streams} x {rows}", f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--skip", action="append", choices=["errors", "times", "ssd"], default=[])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    worse = 0 if "errors" in options.skip else compare_errors(options.build)
    if "times" not in options.skip:
        compare_times(options.build, options.seconds)
    if "ssd" not in options.skip:
        compare_ssd(options.build, options.seconds)
    if worse:
        sys.exit(f"{worse} of the golden cases are worse than transformers")


if __name__ == "__main__":
    main()
