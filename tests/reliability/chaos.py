#!/usr/bin/env python3
"""Faults of every kind, one after the other, while clients go on as if there were none.

    chaos.py [--faults N] [--clients C] [--freeze SECONDS] [--seed S]

Clients use the Python client over TCP, each with streams of its own, through a relay that can stall, drip and cut the
connections.  The daemon keeps states on disk and is frozen (SIGSTOP), terminated and killed (kill -9).  Every hidden
state that a client gets is compared, byte for byte, with those of an undisturbed stream; a row that is lost, an error
that a client sees, or a client that never ends is a failure.
"""
import argparse
import asyncio
import collections
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time

import zmq

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "e2e"), os.path.join(HERE, "..", "..", "protocol", "python")]
from harness import Daemon, Golden, Peer, same_bytes, varied  # noqa: E402
from mamba2d import Client  # noqa: E402

CASE, WINDOW, LONGEST = "seed-46032", 8, 3000  # rows
PATIENCE = 120.0  # seconds that a client waits for a word from the daemon


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Relay:
    """Forwards TCP connections to a port, well or badly: mode is "pass", "stall" or "drip"."""

    def __init__(self, port):
        self.target, self.mode, self.writers = port, "pass", set()
        self.port = free_port()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", self.port), self.loop).result()

    async def _serve(self, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self.writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self.writers -= {writer, far_writer}

    async def _pump(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                while self.mode == "stall":
                    await asyncio.sleep(0.01)
                while self.mode == "drip" and data:
                    writer.write(data[:100])
                    data = data[100:]
                    await asyncio.sleep(random.uniform(0, 0.02))
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()

    def cut(self):
        """End all connections at once, in the middle of whatever they carry."""
        self.loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in self.writers])


class Worker(threading.Thread):
    """A client, which connect() makes, that encodes stream after stream."""

    def __init__(self, number, connect, rows, want, seed):
        super().__init__(daemon=True)
        self.number, self.connect, self.rows, self.want = number, connect, rows, want
        self.random = random.Random(f"{seed} {number}")
        self.stop, self.streams, self.encoded, self.failure = False, 0, 0, None

    def run(self):
        try:
            with self.connect() as client:
                while not self.stop:
                    self._stream(client, b"chaos-%d-%d" % (self.number, self.streams))
                    self.streams += 1
        except BaseException as failure:  # also what only a debugger would see: main() tells
            self.failure = failure

    def check(self):
        assert not self.failure, (self.number, self.streams, self.failure, getattr(self.failure, "stream", None))

    def _stream(self, client, name):
        length, at = self.random.randint(1, LONGEST), 0
        while at < length:
            stop = min(length, at + self.random.choice((1, 50, 400, LONGEST)))
            hidden = client.encode(name, self.rows[at:stop], end=stop == length)
            assert same_bytes(hidden, self.want[at:stop]), f"{name}: hidden states {at} to {stop} differ"
            self.encoded += stop - at
            at = stop


def finish(workers):
    """Let them end the streams that they have begun."""
    for worker in workers:
        worker.stop = True
    for worker in workers:
        worker.join(2 * PATIENCE)
        assert not worker.is_alive(), f"client {worker.number} does not end"
        worker.check()


class Faults:
    def __init__(self, daemon, relay, freeze):
        self.daemon, self.relay, self.freeze_seconds = daemon, relay, freeze
        self.kinds = [self.cut, self.stall, self.drip, self.freeze, self.kill, self.terminate]

    def cut(self):
        self.relay.cut()

    def _network(self, mode, seconds):
        self.relay.mode = mode
        time.sleep(seconds)
        self.relay.mode = "pass"

    def stall(self):
        self._network("stall", random.uniform(0.1, 4))

    def drip(self):
        self._network("drip", random.uniform(0.1, 2))

    def freeze(self):
        self.daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(random.uniform(0.1, self.freeze_seconds))
        self.daemon.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.daemon.kill()
        time.sleep(random.uniform(0, 0.3))
        self.daemon.start()

    def terminate(self):
        self.daemon.terminate()
        assert self.daemon.wait() == 0, self.daemon.log()
        self.daemon.start()


def run(options, daemon, relay, rows):
    want = Peer(daemon).encode(rows)

    def connect():
        return Client(f"tcp://127.0.0.1:{relay.port}", timeout=PATIENCE, silence=2.0, context=zmq.Context())
    workers = [Worker(i, connect, rows, want, options.seed) for i in range(options.clients)]
    faults, counts = Faults(daemon, relay, options.freeze), collections.Counter()
    for worker in workers:
        worker.start()
    for _ in range(options.faults):
        time.sleep(random.uniform(0, 0.5))
        fault = random.choice(faults.kinds)
        counts[fault.__name__] += 1
        fault()
        for worker in workers:
            worker.check()
    finish(workers)
    status = daemon.ask("status")["states"]
    assert status["damaged"] == status["errors"] == 0, status
    print(f"{options.faults} faults ({', '.join(f'{n} x {kind}' for kind, n in counts.most_common())}): "
          f"{sum(w.streams for w in workers)} streams, {sum(w.encoded for w in workers)} rows, nothing lost, every "
          "byte right")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--freeze", type=float, default=3, help="seconds, the longest")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    random.seed(options.seed)
    print(f"seed {options.seed}")
    golden = Golden(CASE)
    rows = varied(golden.rows, -(-LONGEST // len(golden.rows)))[:LONGEST]
    port, folder = free_port(), tempfile.mkdtemp(prefix="mamba2d-chaos-")
    daemon = Daemon(golden.folder, window=WINDOW, **{
        "log.level": "info", "state.dir": folder, "state.interval": 0.2, "sockets.ingest": f"tcp://127.0.0.1:{port}"})
    daemon.ingest = f"tcp://127.0.0.1:{port}"
    try:
        run(options, daemon, Relay(port), rows)
    finally:
        log = daemon.close()
        shutil.rmtree(folder)
        if sys.exc_info()[0]:
            print(log[-5000:], file=sys.stderr)


if __name__ == "__main__":
    main()
