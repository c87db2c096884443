#!/usr/bin/env python3
"""A network that loses, delays, reorders and doubles packets, and that is cut in two, between clients and the daemon.

    network.py [--seconds N] [--partition SECONDS] [--clients C] [--seed S]

The daemon is in one network namespace, Python clients with keys (CURVE over TCP) in another; link.py is the line
between them.  Each condition lasts N seconds, each partition as long as the table says, up to SECONDS.  Every hidden
state is compared, byte for byte, with those of an undisturbed stream.  Exit status 1 if a client sees an error.  Needs
root, and /dev/net/tun; without them it says so and ends with status 77.
"""
import argparse
import os
import random
import shutil
import sys
import tempfile
import time

import zmq

from chaos import CASE, LONGEST, WINDOW, Client, Worker, finish
from harness import Daemon, Golden, Peer, varied
from keyring import Keyring
from link import ADDRESSES, FAR, NEAR, Conditions, Link, Unavailable

SKIPPED = 77
BAD = {
    "none": Conditions(),
    "loss of 1%": Conditions(loss=0.01),
    "loss of 5%": Conditions(loss=0.05),
    "loss of 20%": Conditions(loss=0.2),
    "delay of 50 ± 30 ms": Conditions(delay=0.05, jitter=0.03),
    "a tenth 20 ms late, behind others": Conditions(reorder=0.1),
    "a tenth doubled": Conditions(duplicate=0.1),
    "all of these at once": Conditions(loss=0.05, delay=0.05, jitter=0.03, reorder=0.1, duplicate=0.1),
}
BLOCKED = {"": (NEAR, FAR), ", from the clients only": (NEAR,), ", from the daemon only": (FAR,)}
PARTITIONS = 1, 3, 10, 30  # seconds


class WatchedClient(Client):
    """Counts its connections and measures how long the daemon was not heard."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.connections, self.heard, self.silence = 0, time.monotonic(), 0.0

    def _connect(self):
        self.connections += 1
        super()._connect()

    def _on_message(self, *args):
        self.look()
        self.heard = time.monotonic()
        super()._on_message(*args)

    def look(self):
        self.silence = max(self.silence, time.monotonic() - self.heard)


class Near(Worker):
    """A worker at the clients' end of the link."""

    def __init__(self, link, number, connect, *args):
        super().__init__(number, lambda: self.client, *args)
        self.link, self.client = link, connect()

    def run(self):
        self.link.enter(NEAR)
        super().run()


COLUMNS = ("condition", "s", "packets", "lost", "doubled", "held back", "streams", "rows", "rows/s", "reconnects",
           "longest silence, s", "errors")


def counters(workers):
    return [sum(values) for values in zip(*((w.streams, w.encoded, w.client.connections) for w in workers))]


def wait_for_word(workers):
    """Until each client has heard from the daemon again, or has failed."""
    now = time.monotonic()
    while any(w.client.heard < now and not w.failure for w in workers):
        time.sleep(0.01)


def during(link, workers, name, conditions, seconds):
    """A row of the table: what becomes of the clients under these conditions, and at once after a partition."""
    before, start = counters(workers), time.monotonic()
    for worker in workers:
        worker.client.heard, worker.client.silence = start, 0.0
    link.set(conditions)
    time.sleep(seconds)
    for worker in workers:
        worker.client.look()
    if conditions.blocked:
        packets = link.set(Conditions())
        wait_for_word(workers)
    else:
        packets = link.set(conditions)
    seconds = time.monotonic() - start
    streams, rows, connections = (after - n for after, n in zip(counters(workers), before))
    print(f"| {name} | {seconds:.1f} | {packets['packets']} | {packets['lost']} | {packets['doubled']} | "
          f"{packets['held back']} | {streams} | {rows} | {rows / seconds:.0f} | {connections} | "
          f"{max(w.client.silence for w in workers):.1f} | {sum(w.failure is not None for w in workers)} |", flush=True)


def run(options, link, daemon, address, keyring):
    golden = Golden(CASE)
    rows = varied(golden.rows, -(-LONGEST // len(golden.rows)))[:LONGEST]
    want = Peer(daemon).encode(rows)

    def connect():
        return WatchedClient(address, key=keyring.path("client"), server_key=keyring.own + ".pub",
                             context=zmq.Context())
    workers = [Near(link, i, connect, rows, want, options.seed) for i in range(options.clients)]
    for worker in workers:
        worker.start()
    wait_for_word(workers)
    print(f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS))
    for name, conditions in BAD.items():
        during(link, workers, name, conditions, options.seconds)
    for seconds in PARTITIONS:
        for name, ends in BLOCKED.items():
            if seconds <= options.partition:
                during(link, workers, f"partition of {seconds} s{name}", Conditions(blocked=ends), seconds)
    link.set(Conditions())
    finish(workers)
    status = daemon.ask("status")["states"]
    assert status["damaged"] == status["errors"] == 0, status
    streams, rows, _ = counters(workers)
    print(f"{streams} streams, {rows} rows, nothing lost, every byte right, no error")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--partition", type=float, default=max(PARTITIONS), help="the longest, in seconds")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    try:
        link = Link(options.seed)
    except Unavailable as why:
        print(f"SKIPPED: {why}")
        return SKIPPED
    folder = tempfile.mkdtemp(prefix="mamba2d-network-")
    keyring = Keyring(folder)
    keyring.add("client", "write read")
    daemon = Daemon(Golden(CASE).folder, start=False, window=WINDOW, **{
        "log.level": "info", "state.dir": os.path.join(folder, "states"), "state.interval": 0.2,
        "security.secret_key": keyring.own, "security.authorized_keys": keyring.authorized})
    daemon.settings["sockets.ingest"] = [daemon.ingest, f"tcp://{ADDRESSES[FAR]}:*"]
    daemon.prefix = link.prefix(FAR)
    try:
        daemon.start()
        run(options, link, daemon, daemon.ask("status")["sockets"]["ingest"], keyring)
    finally:
        link.close()
        log = daemon.close()
        shutil.rmtree(folder)
        if sys.exc_info()[0]:
            print(log[-5000:], file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
