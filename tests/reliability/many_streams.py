#!/usr/bin/env python3
"""What a window costs the daemon when thousands of streams are alive, against ten.

    many_streams.py [--streams N] [--windows W] [--rounds R]

Both times ten windows are under way at any moment, of ten random streams out of those alive: batches are the same, only
what must be found and fetched grows.  The cost is the daemon's own CPU time per window, measured in turns.
"""
import argparse
import os
import random
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import Daemon, Golden, Peer, data_frames, pack  # noqa: E402

CASE, WINDOW, FEW, FLYING = "bfloat16", 64, 10, 10


class Streams:
    """Streams of a daemon of their own, all alive."""

    def __init__(self, golden, n):
        self.daemon = Daemon(golden.folder, window=WINDOW, threads=1,
                             **{"log.level": "info", "limits.credit_rows": 1 << 30, "limits.cache_bytes": 1 << 40,
                                "streams.max": n})
        self.peer = Peer(self.daemon)
        self.rows = np.tile(golden.rows, (4, 1))[:WINDOW]
        self.sent = {b"stream-%d" % i: 0 for i in range(n)}
        for name in self.sent:
            self.peer.frames(name, pack({"v": 1, "type": "open", "reply": True}))
        self.run(2 * n)

    def cpu_seconds(self):
        with open(f"/proc/{self.daemon.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send(self, name):
        self.peer.frames(*data_frames(name, self.rows, pos=self.sent[name]))
        self.sent[name] += WINDOW

    def run(self, windows):
        """Seconds of the daemon's CPU time for a window."""
        waiting = random.sample(list(self.sent), len(self.sent))
        start, sent, done = self.cpu_seconds(), 0, 0
        while done < windows:
            while sent < windows and sent - done < FLYING:
                name = waiting.pop(random.randrange(len(waiting)))
                self.send(name)
                sent += 1
            message = self.peer.receive()
            assert message and message.type in ("ack", "hidden"), message
            if message.type == "hidden":
                waiting.append(message.stream)
                done += 1
        return (self.cpu_seconds() - start) / windows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10000)
    parser.add_argument("--windows", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    golden = Golden(CASE)
    few, many = Streams(golden, FEW), Streams(golden, options.streams)
    print(f"| round | {FEW} streams, us of CPU a window | {options.streams} streams | ratio |\n|" + "---|" * 4)
    ratios = []
    for i in range(options.rounds):
        costs = [streams.run(options.windows) * 1e6 for streams in (few, many)]
        ratios.append(costs[1] / costs[0])
        print(f"| {i + 1} | {costs[0]:.1f} | {costs[1]:.1f} | {ratios[-1]:.3f} |", flush=True)
    print(f"median ratio {sorted(ratios)[len(ratios) // 2]:.3f}, "
          f"resident {few.daemon.memory('VmRSS') / 1e6:.0f} and {many.daemon.memory('VmRSS') / 1e6:.0f} MB")
    for streams in few, many:
        streams.daemon.close()


if __name__ == "__main__":
    main()
