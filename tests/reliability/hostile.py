#!/usr/bin/env python3
"""One steady stream beside hostile peers: how late its windows come, and what becomes of the daemon's memory.

    hostile.py [--seconds N] [--only WORD]

A producer sends a window at a time, at a steady pace.  Beside it, in another process, a hostile peer does one of the
cases for N seconds, as fast as it can over a gigabit; before each, the producer is measured alone for as long.  Delays,
from sending a window to having its hidden states, are in units of one window's computing time.  A case is passed if the
daemon answered as it should, and median, 99th percentile and maximum of the delays beside it exceed those of the
producer alone by at most one window.  Other work on the machine delays either now and then, the daemon would always: so
a case that is late is measured again, up to four times in all.  Exit status 1 if a case is not passed.

As root the daemon and the producer have priority (SCHED_FIFO), as if the hostile peer, and whatever else runs here,
were on other machines.
"""
import argparse
import collections
import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from functools import partial

import msgpack
import numpy as np
import zmq

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))
from attacks import BAD, CASE, EPOCH, GREETING, Sleeper, Throttle, connect  # noqa: E402
from harness import TIMEOUT, Daemon, Golden, Peer, data_frames, pack  # noqa: E402
from keyring import Keyring  # noqa: E402

WINDOW, PERIOD = 256, 0.01  # rows, seconds
STREAMS_MAX, CREDIT, MESSAGE_BYTES = 1000, 16384, 16 << 20
ATTEMPTS = 4
SETTLE = 0.5  # seconds until what a peer has left is gone
AT_ONCE = 100  # messages that are sent before answers are looked at
LINE, STEP = 125e6, 1 << 16  # bytes in a second, and at once
COLUMNS = ("case", "answers", "messages", "median before", "p99", "max", "median beside it", "p99", "max",
           "resident MB", "peak", "after", "attempt", "")


# --- the steady stream -----------------------------------------------------------------------------------------------

class Steady(multiprocessing.Process):
    """A process that feeds a stream; latencies(): seconds from sending to hidden states, since it was asked last."""

    def __init__(self, daemon, rows):
        super().__init__(daemon=True)
        self.address, self.rows = daemon.ingest, rows
        self.pipe, self.theirs = multiprocessing.Pipe()
        self.start()
        self.theirs.close()

    def latencies(self):
        self.pipe.send(None)
        return np.array(self.pipe.recv())

    def run(self):
        if may_hurry():
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
        self.pipe.close()
        socket = zmq.Context().socket(zmq.DEALER)
        socket.setsockopt(zmq.RCVTIMEO, int(TIMEOUT * 1000))
        socket.connect(self.address)
        socket.send_multipart([b"steady", pack({"v": 1, "type": "open", "reply": True})])
        latencies, at, due = [], 0, time.monotonic()
        while True:
            if self.theirs.poll(max(0.0, due - time.monotonic())):
                self.theirs.recv()
                self.theirs.send(latencies)
                latencies = []
                continue
            due, start = time.monotonic() + PERIOD, time.monotonic()
            socket.send_multipart(data_frames(b"steady", self.rows, pos=at))
            while msgpack.unpackb(socket.recv_multipart()[1])["type"] != "hidden":
                pass
            latencies.append(time.monotonic() - start)
            at += WINDOW


def may_hurry():
    """May processes of ours be put before all others?"""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


# --- the hostile ones ------------------------------------------------------------------------------------------------

class Attacker(multiprocessing.Process):
    """A process that does a case until it is told to stop; answers and messages are counted."""

    def __init__(self, case, daemon, tcp, keyring):
        super().__init__(daemon=True)
        self.case, self.daemon, self.tcp, self.keyring = case, daemon, tcp, keyring
        self.answers, self.messages, self.line_free = collections.Counter(), 0, 0.0
        self.pipe, self.theirs = multiprocessing.Pipe()
        self.start()
        self.theirs.close()
        self.pipe.recv()  # it is at it

    def stop(self):
        """How many messages it sent, and what was answered: {code or type: how often}."""
        self.pipe.send(None)
        result = self.pipe.recv()
        self.join()
        return result

    def run(self):
        self.pipe.close()
        self.daemon.context = zmq.Context()  # that of the parent is of no use here
        self.sockets = []
        for n, _ in enumerate(self.case(self)):
            for socket in self.sockets:
                self.listen(socket)
            if n == 0:
                self.theirs.send(None)
            if self.theirs.poll():
                break
        time.sleep(0.1)  # the last answers
        for socket in self.sockets:
            self.listen(socket)
        self.theirs.send((self.messages, self.answers))
        os._exit(0)  # with whatever is half done

    def peer(self):
        """A new connection, whose answers are counted."""
        socket = self.daemon.context.socket(zmq.DEALER)
        socket.connect(self.daemon.ingest)
        self.sockets.append(socket)
        return socket

    def listen(self, socket):
        with contextlib.suppress(zmq.Again):
            for _ in range(4 * AT_ONCE):
                header = msgpack.unpackb(socket.recv_multipart(zmq.NOBLOCK)[1])
                self.answers[header.get("code") or header["type"]] += 1

    def pace(self, n_bytes):
        """Wait until the line is free for these, to a millisecond."""
        now = time.monotonic()
        if self.line_free > now + 0.001:
            time.sleep(self.line_free - now)
        self.line_free = max(self.line_free, now) + n_bytes / LINE

    def send(self, socket, *frames):
        """Send a message, as soon as the daemon takes it."""
        self.pace(sum(map(len, frames)))
        while True:
            with contextlib.suppress(zmq.Again):
                socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
                self.messages += 1
                return
            self.listen(socket)
            time.sleep(0.0005)


def again_and_again(stream, frames, attacker):
    """The same message, to a stream that is open in EPOCH."""
    peer = attacker.peer()
    attacker.send(peer, stream[:255], pack({"v": 1, "type": "open", "epoch": EPOCH}))
    at_once = max(1, AT_ONCE * 1000 // sum(map(len, frames), 1000))
    while True:
        for _ in range(at_once):
            attacker.send(peer, stream, *frames)
        yield


def opens(attacker):
    """As many streams as there are names for."""
    peer, header = attacker.peer(), pack({"v": 1, "type": "open"})
    for n in itertools.count(0, AT_ONCE):
        for i in range(n, n + AT_ONCE):
            attacker.send(peer, b"%d" % i, header)
        yield


def lives(attacker):
    """Streams that end as soon as they have begun."""
    peer = attacker.peer()
    for n in itertools.count(0, AT_ONCE):
        for epoch in range(n, n + AT_ONCE):
            for kind in "open", "close":
                attacker.send(peer, b"life", pack({"v": 1, "type": kind, "epoch": epoch}))
        yield


def never_reads(attacker):
    sleeper = Sleeper(attacker.daemon, 500)
    while True:
        sleeper.ask("flush")
        attacker.messages += sleeper.n
        attacker.pace(sleeper.n * 3000)  # its queue takes any number: as fast as the others
        yield


def slow_handshakes(attacker):
    """Connections that say half of hello, or nothing; each is given up after a while and made anew."""
    connections = collections.deque()
    while True:
        connection = connect(attacker.tcp)
        connection.sendall(GREETING[:random.randrange(len(GREETING))])
        connections.append(connection)
        if len(connections) > 300:
            connections.popleft().close()
        yield


def halves(attacker):
    """Multipart messages of which half arrives, then nothing."""
    keys, held = attacker.keyring.keys("hostile"), []
    while True:
        if len(held) < 30:
            throttle = Throttle(attacker.tcp, MESSAGE_BYTES // 2, step=STEP, pause=STEP / LINE)
            peer = Peer(attacker.daemon, throttle.address, keys)
            peer.frames(b"half", bytes(1000), bytes(MESSAGE_BYTES))
            attacker.pace(MESSAGE_BYTES // 2)
            held.append((throttle, peer))
            attacker.messages += 1
        time.sleep(0.01)
        yield


NAN_AT_THE_END = np.ones((CREDIT, 64), np.float32)
NAN_AT_THE_END[-1, -1] = np.nan
OPEN = pack({"v": 1, "type": "open", "epoch": EPOCH})

# name: (answers that must come, and no others, what is done)
CASES = {
    **{name: ({"ack", code}, partial(again_and_again, b"bad", frames)) for name, (code, frames) in BAD.items()},
    "NaN as the last number of 4 MiB": ({"ack", "non_finite"}, partial(
        again_and_again, b"nan", data_frames(b"", NAN_AT_THE_END, epoch=EPOCH)[1:])),
    "16 MiB that are a byte short": ({"ack", "bad_size"}, partial(
        again_and_again, b"short", [pack({"v": 1, "type": "data", "epoch": EPOCH, "shape": [MESSAGE_BYTES // 256, 64],
                                          "dtype": "float32"}), bytes(MESSAGE_BYTES - 1)])),
    "a thousand frames": ({"ack", "bad_header"}, partial(again_and_again, b"many", [OPEN] + 999 * [b""])),
    "a stream id of 255 bytes": ({"ack"}, partial(again_and_again, b"x" * 255, [OPEN])),
    "a stream id of 256 bytes": ({"ack", "bad_header"}, partial(again_and_again, b"x" * 256, [OPEN])),
    "lives without end": ({"ack"}, lives),
    "a peer that never reads its acks": (set(), never_reads),
    "handshakes that never end": (set(), slow_handshakes),
    "half a message, then silence": (set(), halves),
    "opens without end": ({"ack", "too_many_streams"}, opens),
}


# --- the table -------------------------------------------------------------------------------------------------------

def figures(latencies):
    """Median, 99th percentile and maximum."""
    return (*np.percentile(latencies, (50, 99)), latencies.max())


def window_seconds(daemon, steady):
    """The device's time for one window."""
    def read():
        status = daemon.ask("status")
        return sum(device["busy_s"] for device in status["devices"]), status["windows"]
    before = read()
    time.sleep(2)
    after = read()
    steady.latencies()
    return (after[0] - before[0]) / (after[1] - before[1])


def forget_peak(daemon):
    with open(f"/proc/{daemon.process.pid}/clear_refs", "w") as file:
        file.write("5")


def measure(daemon, steady, tcp, keyring, case, seconds):
    """The producer alone, then beside the case: what the table needs."""
    steady.latencies()
    time.sleep(seconds)
    alone = steady.latencies()
    memory = daemon.memory("VmRSS")
    forget_peak(daemon)
    attacker = Attacker(case, daemon, tcp, keyring)
    time.sleep(seconds)
    messages, answers = attacker.stop()
    beside = steady.latencies()
    time.sleep(SETTLE)
    return alone, beside, messages, answers, (memory, daemon.memory("VmHWM"), daemon.memory("VmRSS"))


def run(options, daemon, tcp, keyring):
    rows = np.resize(Golden(CASE).rows, (WINDOW, Golden(CASE).hidden_size))
    steady = Steady(daemon, rows)
    window, failed, n = window_seconds(daemon, steady), [], 0
    print(f"one window takes {window * 1e3:.2f} ms; delays are in windows\n| {' | '.join(COLUMNS)} |\n|"
          + "---|" * len(COLUMNS))
    for name, (codes, case) in CASES.items():
        if options.only not in name:
            continue
        for attempt in range(1, ATTEMPTS + 1):
            alone, beside, messages, answers, memory = measure(daemon, steady, tcp, keyring, case, options.seconds)
            alone, beside, wrong = figures(alone / window), figures(beside / window), set(answers) != codes
            late = any(during > before + 1 for before, during in zip(alone, beside))
            if wrong or not late:
                break
        n += 1
        failed += [name] * (wrong or late)
        print("|", " | ".join([name, ", ".join(sorted(answers)), str(messages), *(f"{x:.1f}" for x in alone),
                               *(f"{x:.1f}" for x in beside), *(f"{x / 1e6:.0f}" for x in memory), str(attempt),
                               "WRONG ANSWERS" if wrong else "LATE" if late else "passed"]), "|", flush=True)
    print(f"{n - len(failed)} of {n} cases passed{': not ' * bool(failed)}{'; '.join(failed)}")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", default="", help="the cases with this word in their names")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="mamba2d-hostile-")
    keyring = Keyring(folder)
    keyring.add("hostile", "write read")
    daemon = Daemon(Golden(CASE).folder, start=False, window=WINDOW, threads=1, **{
        "log.level": "info", "streams.max": STREAMS_MAX, "limits.message_bytes": MESSAGE_BYTES,
        "limits.credit_rows": CREDIT, "security.secret_key": keyring.own,
        "security.authorized_keys": keyring.authorized})
    daemon.settings["sockets.ingest"] = [daemon.ingest, "tcp://127.0.0.1:*"]
    daemon.prefix = ["chrt", "--fifo", "1"] if may_hurry() else []
    try:
        daemon.start()
        failed = run(options, daemon, daemon.ask("status")["sockets"]["ingest"], keyring)
    finally:
        daemon.close()
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
