#!/usr/bin/env python3
"""Producers that offer many times what the daemon can compute.

    overload.py [--seconds N] [--times X] [--producers P] [--streams S]

The daemon's rate is measured first, with producers that wait for credit.  Then P processes of S streams each send X times
as much in all, whatever comes back: refused rows are sent again, at the same pace.  The table shows how resident memory,
the rate, the latency of what was accepted and that of a patient stream beside it go on; then the overload ends, and the
patient stream tells how soon all is well.  Exit status 1 if memory grows or the streams are served unequally.
"""
import argparse
import multiprocessing
import os
import sys
import time

import msgpack
import numpy as np
import zmq

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import Daemon, Golden, Peer, data_frames, pack  # noqa: E402

CASE, WINDOW, MESSAGE, CREDIT = "bfloat16", 64, 64, 4096  # rows
ROWS_PER_SECOND_MOST = 1 << 40
SAMPLES = 10
UNFAIR = 1.2
MEMORY_SLACK, MEMORY_NOISE = 1.1, 16 << 20  # what waits in the sockets comes and goes


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


class Producer:
    """Some streams on a connection of their own, and rows that fall due at a rate, or as fast as credit allows."""

    def __init__(self, address, names, columns, rate):
        self.socket = zmq.Context().socket(zmq.DEALER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self.socket.setsockopt(option, 0)
        self.socket.setsockopt(zmq.SNDHWM, 64)  # what the daemon does not read is not sent: no socket takes any amount
        self.socket.connect(address)
        self.rows = np.random.default_rng(1).standard_normal((MESSAGE, columns)).astype(np.float32)
        self.sent = dict.fromkeys(names, 0)
        self.served = dict.fromkeys(names, 0)
        self.rate, self.refused, self.latencies = rate, 0, []
        for name in names:
            self.socket.send_multipart([name, pack({"v": 1, "type": "open", "reply": True})])

    def send(self, name):
        frames = data_frames(name, self.rows, pos=self.sent[name], t=time.monotonic_ns())
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self.sent[name] += MESSAGE
        return True

    def receive(self):
        while self.socket.poll(0):
            frames = self.socket.recv_multipart()
            header = msgpack.unpackb(frames[1])
            if header["type"] == "hidden":
                self.served[frames[0]] += header["shape"][0]
                self.latencies.append((time.monotonic_ns() - header["t"]) / 1e9)
            elif header["type"] == "error":
                assert header["code"] in ("gap", "no_credit"), header
                self.refused += 1
                self.sent[frames[0]] = header["expected"]

    def run(self, seconds):
        """Send what falls due, each stream in turn."""
        end, before, due = time.monotonic() + seconds, time.monotonic(), 0.0
        names = list(self.sent)
        turn = 0
        while (now := time.monotonic()) < end:
            due, before = min(due + (now - before) * self.rate, 64 * MESSAGE), now
            while due >= MESSAGE and self.send(names[turn % len(names)]):
                due -= MESSAGE
                turn += 1
            self.receive()
            if due < MESSAGE:
                time.sleep(0.0005)


def produce(address, names, columns, rate, seconds, pipe):
    """A process: say every second how it went."""
    producer = Producer(address, names, columns, rate)
    for _ in range(seconds):
        producer.run(1)
        pipe.send((dict(producer.served), producer.refused, producer.latencies))
        producer.latencies = []
    pipe.close()


class Patient:
    """A stream of one window at a time."""

    def __init__(self, daemon, rows):
        self.peer, self.rows, self.at = Peer(daemon), rows[:WINDOW], 0
        self.peer.open(b"patient")

    def latency(self):
        start = time.monotonic()
        self.peer.data(b"patient", self.rows, pos=self.at)
        self.peer.hidden(b"patient", self.at, self.at + WINDOW)
        self.at += WINDOW
        return time.monotonic() - start


def offer(daemon, columns, options, rate, seconds, prefix):
    """Run the producers; yields once a second what they said, added up: (served by stream, refused, latencies)."""
    pipes, processes = [], []
    for p in range(options.producers):
        names = [b"%s-%d-%d" % (prefix, p, s) for s in range(options.streams)]
        here, there = multiprocessing.Pipe(False)
        process = multiprocessing.Process(target=produce, args=(daemon.ingest, names, columns,
                                                                rate / options.producers, seconds, there))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    for _ in range(seconds):
        served, refused, latencies = {}, 0, []
        for pipe in pipes:
            theirs, n, new = pipe.recv()
            served.update(theirs)
            refused += n
            latencies += new
        yield served, refused, latencies
    for process in processes:
        process.join()
        assert process.exitcode == 0


def overload(daemon, patient, columns, options, capacity):
    """Rows of the table; returns what is wrong."""
    memories, begun, refused_before, last_rows, last_time = [], None, 0, 0, time.monotonic()
    print("| s | rows/s served | refused/s | resident MB | latency p50, ms | p99, ms | patient, ms |\n|" + "---|" * 7)
    every = max(1, options.seconds // SAMPLES)
    latencies = []
    for second, (served, refused, new) in enumerate(offer(daemon, columns, options, options.times * capacity,
                                                          options.seconds, b"greedy"), 1):
        latencies += new
        begun = begun or dict(served)
        if second % every:
            continue
        rows, now = sum(served.values()), time.monotonic()
        memories.append(daemon.memory("VmRSS"))
        print(f"| {second} | {(rows - last_rows) / (now - last_time):.0f} | "
              f"{(refused - refused_before) / (now - last_time):.0f} | {memories[-1] / 1e6:.1f} | "
              f"{percentile(latencies, 0.5) * 1e3:.0f} | {percentile(latencies, 0.99) * 1e3:.0f} | "
              f"{patient.latency() * 1e3:.0f} |", flush=True)
        last_rows, last_time, refused_before, latencies = rows, now, refused, []
    rows = [served[name] - begun[name] for name in served]
    print(f"served of {len(rows)} streams: {min(rows)} to {max(rows)} rows, {max(rows) / min(rows):.2f} to 1")
    faults = []
    if max(rows) > UNFAIR * min(rows):
        faults.append("streams were served unequally")
    first, last = (sum(half) / len(half) for half in (memories[:len(memories) // 2], memories[len(memories) // 2:]))
    if last > first * MEMORY_SLACK + MEMORY_NOISE:
        faults.append(f"resident memory grew from {first:.0f} bytes in the first half to {last:.0f} in the second")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--producers", type=int, default=2)
    parser.add_argument("--streams", type=int, default=4)
    options = parser.parse_args()
    golden = Golden(CASE)
    daemon = Daemon(golden.folder, window=WINDOW, threads=1, **{"log.level": "info", "limits.credit_rows": CREDIT})
    try:
        patient = Patient(daemon, np.tile(golden.rows, (4, 1)))
        quiet = percentile([patient.latency() for _ in range(50)], 0.5)
        *_, (served, _, _) = offer(daemon, golden.hidden_size, options, ROWS_PER_SECOND_MOST, 3, b"measured")
        capacity = sum(served.values()) / 3
        bound = options.producers * CREDIT / capacity
        print(f"rate {capacity:.0f} rows/s; one window alone {quiet * 1e3:.2f} ms; "
              f"all credit used up, a row waits {bound * 1e3:.0f} ms")
        faults = overload(daemon, patient, golden.hidden_size, options, capacity)
        after = [patient.latency() for _ in range(50)]
        print(f"one window alone, at once after it: first {after[0] * 1e3:.2f} ms, median "
              f"{percentile(after, 0.5) * 1e3:.2f} ms")
        print("; ".join(faults) or "nothing grew, all were served alike")
    finally:
        daemon.close()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
