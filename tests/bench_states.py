#!/usr/bin/python3
"""What keeping states costs: throughput with a state folder and without one, and the start with many state files.

    bench_states.py [--blocks N] [--interval S] [--turn S] [--streams N] [--files N] [--precision P]

It runs what is in MAMBA2D_BUILD (default: build).

Two daemons run a model of the 130m shape with random weights, one of them with state.dir.  They take short turns, the
other one being stopped, so that both meet the same noise; a block of turns is an interval of work for each, in which all
streams are saved once, and gives one ratio of their rows per second and one of their processor time per row.  All
streams are kept two windows ahead.

Then, how long a daemon takes from exec to its first answer, with so many state files and with none.
"""
import argparse
import os
import signal
import statistics
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "e2e"))

import random_checkpoint
from harness import Daemon, Golden, Message, Peer, data_frames

WINDOW, SHAPE = 256, random_checkpoint.SHAPES["130m"]
AHEAD = 2  # windows


class Load:
    """Streams that are kept busy, on one daemon."""

    def __init__(self, daemon, n_streams, rows):
        self.daemon, self.rows = daemon, rows
        self.peer = Peer(daemon)
        self.sent = {}
        for i in range(n_streams):
            stream = b"bench-%d" % i
            self.peer.open(stream)
            self.sent[stream] = 0
            for _ in range(AHEAD):
                self.send(stream)

    def send(self, stream):
        self.peer.frames(*data_frames(stream, self.rows, pos=self.sent[stream]))
        self.sent[stream] += len(self.rows)

    def processor_time(self):
        with open(f"/proc/{self.daemon.process.pid}/stat") as file:
            ticks = file.read().rsplit(")", 1)[1].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def store_time(self):
        """Processor time of the thread that writes states."""
        folder = f"/proc/{self.daemon.process.pid}/task"
        for thread in os.listdir(folder):
            with open(f"{folder}/{thread}/comm") as name, open(f"{folder}/{thread}/schedstat") as times:
                if name.read().strip() == "store":
                    return int(times.read().split()[0]) / 1e9
        return 0

    def turn(self, seconds):
        """Let the daemon work for so long; returns the time, its processor time and the rows that came back."""
        used, rows = self.processor_time(), 0
        began = now = time.monotonic()
        self.daemon.process.send_signal(signal.SIGCONT)
        while now < began + seconds:
            if self.peer.socket.poll((began + seconds - now) * 1000):
                message = Message(self.peer.socket.recv_multipart())
                assert message.type != "error", message
                if message.type == "hidden":
                    rows += len(message.rows)
                    self.send(message.stream)
            now = time.monotonic()
        self.daemon.process.send_signal(signal.SIGSTOP)
        return np.array([time.monotonic() - began, self.processor_time() - used, rows])


def spread(values):
    return f"median {statistics.median(values):.3f}, mean {statistics.mean(values):.3f} " \
           f"({min(values):.3f} to {max(values):.3f})"


def bench_saving(options, model, folder):
    rows = np.random.default_rng(1).standard_normal((WINDOW, SHAPE[0]), np.float32)
    settings = {"window": WINDOW, "precision": options.precision, "log.level": "warning", "limits.batch_rows": 512,
                "limits.cache_bytes": 1 << 40,
                "limits.credit_rows": 2 * AHEAD * options.streams * WINDOW}
    without = Daemon(model, **settings)
    keeping = Daemon(model, **settings, **{"state.dir": os.path.join(folder, "states"),
                                           "state.interval": 2 * options.interval})  # it is stopped half of the time
    loads = [Load(daemon, options.streams, rows) for daemon in (without, keeping)]
    speeds, efforts = [], []
    for block in range(-1, options.blocks):
        sums = [0, 0]
        for turn in range(round(options.interval / options.turn)):
            for i in ((0, 1), (1, 0))[turn % 2]:
                sums[i] = sums[i] + loads[i].turn(options.turn)
        (seconds, work, n), (seconds_keeping, work_keeping, n_keeping) = sums
        print(f"block {block}: {n / seconds:.0f} rows/s without, {n_keeping / seconds_keeping:.0f} with; "
              f"{work / n * 1e6:.0f} us of processor time a row without, {work_keeping / n_keeping * 1e6:.0f} with",
              flush=True)
        if block >= 0:  # in the first, states begin to be due
            speeds.append(n_keeping / seconds_keeping / (n / seconds))
            efforts.append(work_keeping / n_keeping / (work / n))
    for daemon in (without, keeping):
        daemon.process.send_signal(signal.SIGCONT)
    states = keeping.ask("status")["states"]
    print(f"{states['written']} states written, {states['written_bytes'] / states['written'] / 1e6:.1f} MB and "
          f"{loads[1].store_time() / states['written'] * 1e3:.1f} ms of the store's processor time each, "
          f"{states['errors']} errors")
    print("rows/s, with over without:", spread(speeds))
    print("processor time a row, with over without:", spread(efforts))
    for daemon in (without, keeping):
        daemon.kill()
        daemon.close()


def bench_start(options, model, folder):
    """Make the files with a small model, and start the large one on them: no state is read at the start."""
    many, none = (os.path.join(folder, name) for name in ("many", "none"))
    golden = Golden("seed-46032")
    small = Daemon(golden.folder, window=8, **{"state.dir": many, "streams.max": 100})
    peer = Peer(small)
    for i in range(options.files):
        peer.data(b"file-%d" % i, golden.rows[:1])
        peer.ack(b"file-%d" % i, next=1)
    small.close()
    assert len({name.split("-")[0] for name in os.listdir(many) if name.endswith(".safetensors")}) == options.files
    for what, settings in (("130m", {"window": WINDOW}), ("small model", {"window": 8})):
        times = {many: [], none: []}
        daemon = Daemon(model if what == "130m" else golden.folder, start=False, **settings)
        for _ in range(5):
            for states in times:
                daemon.settings["state.dir"] = states
                began = time.monotonic()
                daemon.start()
                times[states].append(time.monotonic() - began)
                daemon.kill()
        daemon.close()
        print(f"{what}: seconds until the first answer with {options.files} state files: {spread(times[many])}, "
              f"with none: {spread(times[none])}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--interval", type=float, default=30)
    parser.add_argument("--turn", type=float, default=0.5)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mamba2d-bench-") as folder:
        model = random_checkpoint.write(os.path.join(folder, "130m"), *SHAPE)
        bench_start(options, model, folder)
        bench_saving(options, model, folder)


if __name__ == "__main__":
    main()
