"""The Python client survives kill -9 of the daemon by itself, and its own: nothing is lost, nothing comes twice.

MAMBA2D_KILLS and MAMBA2D_SEED are as in test_states_killed.py.
"""
import os
import random as randomness
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../protocol/python"))

from harness import TIMEOUT, same_bytes
from mamba2d import Client

CASE, WINDOW = "seed-46032", 8
KILLS = int(os.environ.get("MAMBA2D_KILLS", 15))


class Killer(threading.Thread):
    """Kills the daemon so many times, at random instants, and starts it again."""

    def __init__(self, daemon, random, kills):
        super().__init__(daemon=True)
        self.victim, self.random, self.kills = daemon, randomness.Random(random.random()), kills
        self.start()

    def run(self):
        for _ in range(self.kills):
            time.sleep(self.random.uniform(0.02, 0.2))
            self.victim.kill()
            time.sleep(self.random.choice((0, 0, 0.1)))
            self.victim.start()


def pieces(random, n):
    """Cut n rows into pieces: (start, stop)."""
    start = 0
    while start < n:
        stop = min(n, start + random.choice((1, 5, 40, 400)))
        yield start, stop
        start = stop


@pytest.fixture
def daemon(daemons, tmp_path):
    return daemons(CASE, window=WINDOW, **{"state.dir": str(tmp_path / "states"), "state.interval": 0.01})


def test_encode(daemon, random, rows, want):
    killer = Killer(daemon, random, KILLS)
    streams = 0
    with Client(daemon.ingest, context=daemon.context) as client:
        while killer.is_alive():
            streams += 1
            for start, stop in pieces(random, random.choice((10, 3000))):
                hidden = client.encode(f"encode-{streams}", rows[start:stop], end=stop == 3000)
                assert same_bytes(hidden, want[start:stop])
        kept = client.encode_many({f"many-{i}": rows[:50 * i] for i in range(1, 5)}, end=True)
        for i in range(1, 5):
            assert same_bytes(kept[f"many-{i}"], want[:50 * i])
    killer.join()


def test_encode_many(daemon, random, rows, want):
    killer = Killer(daemon, random, KILLS)
    with Client(daemon.ingest, context=daemon.context, message_bytes=20 * rows[0].nbytes) as client:
        n = 0
        while killer.is_alive():
            n += 1
            for start, stop in pieces(random, 2000):
                hidden = client.encode_many({f"{n}-{i}": rows[start:stop] for i in range(3)})
                for i in range(3):
                    assert same_bytes(hidden[f"{n}-{i}"], want[start:stop])
    killer.join()


def test_send(daemon, random, rows, want):
    """Every row is applied once, which the hidden states of those behind them tell."""
    killer = Killer(daemon, random, KILLS)
    with Client(daemon.ingest, context=daemon.context) as client:
        n = 0
        while killer.is_alive():
            n += 1
            for start, stop in pieces(random, 2000):
                client.send(f"send-{n}", rows[start:stop], wait=random.choice((None, "accepted")),
                            flush=random.random() < 0.1)
            assert same_bytes(client.encode(f"send-{n}", rows[2000:2100]), want[2000:2100])
    killer.join()


def test_killed_between_the_last_row_and_its_end(daemon, random, rows, want, tmp_path):
    """A closed stream is gone, but not before its peer has the end."""
    with Client(daemon.ingest, context=daemon.context) as client:
        for n in range(10):
            killer = Killer(daemon, random, 1)
            for start, stop in pieces(random, 200):
                assert same_bytes(client.encode(f"end-{n}", rows[start:stop], end=stop == 200), want[start:stop])
            killer.join()
            assert same_bytes(client.encode(f"end-{n}", rows[:20]), want[:20]), "the id is used anew"
            client.encode(f"end-{n}", rows[:0], end=True)
        time.sleep(0.2)
        assert not os.listdir(tmp_path / "states"), "nothing is left of what has ended"


# A producer as a process: it encodes the rows of a file, and goes on where what it has written ends; or before, where
# the daemon needs older rows to go on from.
PRODUCER = """
import os, random, sys, time
import numpy as np
from mamba2d import Client, Refused

address, source, target = sys.argv[1:]
rows = np.load(source)
with Client(address) as client, open(target, "ab") as out:
    have = pos = out.tell() // rows[0].nbytes
    while have < len(rows):
        stop = min(len(rows), max(have, pos + random.choice((1, 5, 40))))
        try:
            hidden = client.encode(os.path.basename(target), rows[pos:stop], pos=pos)
        except Refused as refused:
            assert refused.code == "gap" and refused.expected < pos == have, refused
            pos = refused.expected
            continue
        time.sleep(random.uniform(0, 0.002))
        out.write(hidden[have - pos:].tobytes())
        out.flush()
        have = pos = stop
"""


def kill_at_work(process, target, size, daemon, random):
    """Kill the producer a moment after it has written something; returns whether it had not ended before."""
    while process.poll() is None and target.stat().st_size == size:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.03))
    if random.random() < 0.3:
        daemon.kill()
        daemon.start()
        time.sleep(random.uniform(0, 0.05))
    process.kill()
    return process.wait() != 0


def test_the_producer_is_killed(daemon, random, rows, want, tmp_path):
    """Started again with what it has on disk, it gets the rest; sometimes the daemon is killed as well."""
    source, row_bytes = tmp_path / "rows.npy", rows[0].nbytes
    np.save(source, rows)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(sys.modules["mamba2d"].__file__)}
    kills = streams = 0
    while kills < KILLS or streams == 0:
        streams += 1
        target = tmp_path / f"process-{streams}"
        target.touch()
        done = False
        while not done:
            size = target.stat().st_size
            process = subprocess.Popen([sys.executable, "-c", PRODUCER, daemon.ingest, source, target], env=environment)
            if kills < KILLS:
                kills += kill_at_work(process, target, size, daemon, random)
            done = process.wait(TIMEOUT) == 0
            assert done or process.returncode == -9, daemon.log()[-3000:]
            with open(target, "r+b") as out:  # a write may have been cut off
                out.truncate(target.stat().st_size // row_bytes * row_bytes)
        assert same_bytes(np.fromfile(target, np.float32).reshape(rows.shape), want)
    print(f"{kills} producers were killed, {streams} streams")
