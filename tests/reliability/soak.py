#!/usr/bin/env python3
"""A long run: many windows through one daemon while streams come and go.

    soak.py [--windows N] [--streams S] [--ids I] [--state-dir]

S streams are fed at once by one producer with replies. Each lives for a random number of windows, arrives in pieces of
random size, and ends with `end` or `close`; then another id out of I begins, in its next epoch. Every hidden state is
compared, byte for byte, with those of one undisturbed stream. The table shows resident memory, descriptors, latency and
lines in the log as the run goes on; exit status 1 if a byte differs or one of the first two or the last one grows.
"""
import argparse
import collections
import os
import random
import shutil
import sys
import tempfile
import time

import msgpack
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import Daemon, Golden, Peer, data_frames, pack  # noqa: E402

CASE, WINDOW, LONGEST = "seed-46032", 8, 40  # rows, windows
SAMPLES = 25
MEMORY_SLACK, MEMORY_NOISE = 1.02, 1 << 20


class Life:
    """One life of a stream: how far it was fed and what has come back."""

    def __init__(self, stream, epoch, rng):
        self.stream, self.epoch = stream, epoch
        self.length = rng.randint(1, LONGEST * WINDOW)
        self.sent = self.have = 0
        self.sent_at = collections.deque()  # (rows sent by then, when)


class Soak:
    def __init__(self, daemon, rows, want, streams, ids, rng):
        self.rows, self.want, self.rng = rows, want, rng
        self.peer = Peer(daemon)
        self.epochs = {b"soak-%d" % i: 0 for i in range(ids)}
        self.idle = list(self.epochs)
        self.lives = {}
        self.windows = self.finished = 0
        self.latencies = []
        for _ in range(streams):
            self.begin()

    def begin(self):
        """The next life of some id."""
        i = self.rng.randrange(len(self.idle))
        self.idle[i], self.idle[-1] = self.idle[-1], self.idle[i]
        life = Life(self.idle.pop(), 0, self.rng)
        life.epoch = self.epochs[life.stream] = self.epochs[life.stream] + 1
        self.lives[life.stream] = life
        self.peer.frames(life.stream, pack({"v": 1, "type": "open", "epoch": life.epoch, "reply": True}))
        self.feed(life)

    def feed(self, life):
        """Send rows until there is something to wait for: a full window, or the end."""
        while life.sent < life.length and life.sent // WINDOW == life.have // WINDOW:
            self.send(life)

    def send(self, life):
        """Some more rows; at the end, say so with them or behind them."""
        stop = min(life.length, life.sent + self.rng.randint(1, 16 * WINDOW))
        last = stop == life.length
        say_so = last and self.rng.random() < 0.5
        header = {"pos": life.sent, "epoch": life.epoch, **({"end": True} if say_so else {})}
        self.peer.frames(*data_frames(life.stream, self.rows[life.sent:stop], **header))
        if last and not say_so:
            self.peer.frames(life.stream, pack({"v": 1, "type": "close", "epoch": life.epoch}))
        life.sent = stop
        life.sent_at.append((stop, time.monotonic()))

    def take(self):
        """One message from the daemon."""
        frames = self.peer.socket.recv_multipart()
        header = msgpack.unpackb(frames[1])
        life = self.lives.get(frames[0])
        assert header["type"] in ("ack", "hidden"), (frames[0], header)
        if header["type"] == "ack" or not life or header["epoch"] != life.epoch:
            assert header["type"] == "ack", f"{frames[0]}: {header} of an earlier life"
            return
        stop = life.have + header["shape"][0]
        assert header["pos"] == life.have, f"{frames[0]}: {header} after {life.have}"
        if header["shape"][0]:
            assert frames[2] == self.want[life.have:stop].tobytes(), f"{frames[0]}: {header} differs"
        life.have = stop
        self.windows += stop // WINDOW - header["pos"] // WINDOW
        while life.sent_at and life.sent_at[0][0] <= stop:
            self.latencies.append(time.monotonic() - life.sent_at.popleft()[1])
        if header.get("end"):
            assert stop == life.length, f"{frames[0]}: ended at {stop} of {life.length}"
            del self.lives[life.stream]
            self.idle.append(life.stream)
            self.finished += 1
            self.begin()
        else:
            self.feed(life)

    def run(self, windows):
        while self.windows < windows:
            assert self.peer.socket.poll(60000), f"nothing came for a minute; {self.windows} windows were done"
            self.take()


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def sample(daemon, soak, start):
    """(windows, seconds, resident bytes, descriptors, p50, p99, lines in the log)"""
    latencies, soak.latencies = soak.latencies or [0.0], []
    return (soak.windows, time.monotonic() - start, daemon.memory("VmRSS"),
            daemon.descriptors(), percentile(latencies, 0.5), percentile(latencies, 0.99),
            daemon.log().count("\n"))


def judge(samples):
    """What has grown, as a list of sentences; the first fifth warms up."""
    begin, end = samples[len(samples) // 5], samples[-1]
    faults = []
    if end[2] > begin[2] * MEMORY_SLACK + MEMORY_NOISE:
        faults.append(f"resident memory grew from {begin[2]} to {end[2]} bytes")
    if end[3] != begin[3]:
        faults.append(f"{begin[3]} descriptors became {end[3]}")
    if end[6] > begin[6] + 10:
        faults.append(f"{end[6] - begin[6]} lines in the log")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1000000)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--ids", type=int, default=2000)
    parser.add_argument("--state-dir", action="store_true", help="with streams that are kept on disk")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    golden = Golden(CASE)
    rows = np.tile(golden.rows, (-(-LONGEST * WINDOW // len(golden.rows)), 1))[:LONGEST * WINDOW]
    folder = tempfile.mkdtemp(prefix="mamba2d-soak-")
    settings = {"state.dir": folder, "state.interval": 1} if options.state_dir else {}
    daemon = Daemon(golden.folder, window=WINDOW, **{"log.level": "info", "limits.credit_rows": 1 << 30, **settings})
    try:
        print(f"seed {options.seed}")
        want = Peer(daemon).encode(rows)
        soak = Soak(daemon, rows, want, options.streams, options.ids, random.Random(options.seed))
        start, samples = time.monotonic(), []
        print("| windows | s | resident MB | descriptors | latency p50, ms | p99, ms | log lines |\n|" + "---|" * 7)
        for i in range(SAMPLES):
            soak.run(options.windows * (i + 1) // SAMPLES)
            samples.append(sample(daemon, soak, start))
            windows, seconds, memory, descriptors, p50, p99, lines = samples[-1]
            print(f"| {windows} | {seconds:.0f} | {memory / 1e6:.1f} | {descriptors} | {p50 * 1e3:.2f} | "
                  f"{p99 * 1e3:.2f} | {lines} |", flush=True)
        faults = judge(samples)
        print(f"{soak.windows} windows, {soak.finished} lives of {options.ids} streams, every byte compared: "
              + ("; ".join(faults) or "nothing grew"))
    finally:
        daemon.close()
        shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
