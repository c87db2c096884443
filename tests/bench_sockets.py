#!/usr/bin/python3
"""What a daemon does over its sockets, beside what libzmq alone and the device in process do in the same run.

    bench_sockets.py [--device NAME] [--shape NAME]... [--seconds S]

It runs what is in MAMBA2D_BUILD (default: build): for each line a daemon over ipc, with random weights, bfloat16 rows
in and hidden states out, and bench_daemon, which takes turns of S seconds in all with each of the three.

Latency is from sending a window to its hidden states.  Of one row at a time, *held* is libzmq's where a message is held
for as long as a pass takes: what the daemon itself adds is the difference.  On a GPU there has to be room for caches of
the daemon and of bench_daemon.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "e2e"))

import random_checkpoint
from harness import BUILD, Daemon

# shape, streams, window, windows ahead
LINES = [("130m", 64, 256, 2), ("130m", 64, 256, 4), ("130m", 1, 1, 1), ("2.7b", 64, 256, 2)]
NAMES = ["model, streams x window, ahead", "rows/s", "in process", "libzmq", "ratios", "p50, p99, ms", "held"]
STATE_SIZE = 128


def line(cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measure(options, model, shape, streams, window, ahead):
    hidden_size, layers = random_checkpoint.SHAPES[shape]
    cache = 4 * layers * 2 * hidden_size * (STATE_SIZE + 4)
    settings = {"device": options.device, "precision": "bfloat16", "output.dtype": "bfloat16", "window": window,
                "limits.credit_rows": 2 * streams * window * ahead, "limits.cache_bytes": 2 * streams * cache,
                "log.level": "warning"}
    daemon = Daemon(model, **settings)
    arguments = {"ingest": daemon.ingest, "columns": hidden_size, "streams": streams, "window": window, "ahead": ahead,
                 "dtype": "bfloat16", "seconds": options.seconds, "model": model, "device": options.device}
    try:
        command = [os.path.join(BUILD, "tests", "bench_daemon")]
        command += [str(word) for key, value in arguments.items() for word in ("--" + key, value)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    finally:
        daemon.close()


def show(shape, r):
    def latency(of):
        return f"{r[of + 'latency_ms_p50']:.3f}, {r[of + 'latency_ms_p99']:.3f}"

    rates = [r[of + "rows_per_s"] for of in ("", "in_process_", "libzmq_")]
    line([f"{shape}, {r['streams']} x {r['window']}, {r['ahead']}", *(f"{rate:.0f}" for rate in rates),
          ", ".join(f"{rates[0] / rate:.2f}" for rate in rates[1:]), latency(""),
          latency("libzmq_held_") if "libzmq_held_rows_per_s" in r else "-"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", action="append", choices=sorted({shape for shape, *_ in LINES}))
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    line(NAMES)
    print("|" + "---|" * len(NAMES))
    with tempfile.TemporaryDirectory(prefix="mamba2d-bench-") as folder:
        for shape in options.shape or dict.fromkeys(shape for shape, *_ in LINES):
            model = random_checkpoint.write(os.path.join(folder, shape), *random_checkpoint.SHAPES[shape])
            for _, *numbers in (entry for entry in LINES if entry[0] == shape):
                show(shape, measure(options, model, shape, *numbers))


if __name__ == "__main__":
    main()
