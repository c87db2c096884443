"""What hostile peers send and do: one table and two classes for whoever tests that they do no harm."""
import contextlib
import socket
import struct
import threading
import time

import msgpack
import numpy as np
import zmq

from harness import Receiver, data_frames, pack

CASE = "causal-lm-sharded"  # a checkpoint with token embeddings, for which these are wrong
EPOCH = 3                   # of the stream that gets them


def header(**changes):
    """A good data header for one row but for the changes; None leaves a key out."""
    good = {"v": 1, "type": "data", "shape": [1, 64], "dtype": "float32", **changes}
    return pack({key: value for key, value in good.items() if value is not None})


def rows_message(rows, dtype=None, **changes):
    """A data message of these rows in the stream's epoch."""
    return data_frames(b"", rows, dtype, **{"epoch": EPOCH, **changes})[1:]


ROW = np.ones((1, 64), np.float32)
LAST_IS_NAN = np.where(np.arange(192).reshape(3, 64) == 191, np.nan, 1).astype(np.float32)
PAYLOAD = ROW.tobytes()
KEYS = [msgpack.packb(k) for k in ("v", "type", "shape", "dtype")]
VALUES = [msgpack.packb(x) for x in (1, "data", [1, 64], "float32")]
BODY = b"".join(k + x for k, x in zip(KEYS, VALUES))

# name: (code, frames after the stream id)
BAD = {
    "version 2": ("bad_version", [header(v=2), PAYLOAD]),
    "version 0": ("bad_version", [header(v=0), PAYLOAD]),
    "no version": ("bad_version", [header(v=None), PAYLOAD]),
    "version as text": ("bad_version", [header(v="1"), PAYLOAD]),
    "no type": ("bad_header", [header(type=None), PAYLOAD]),
    "unknown type": ("bad_header", [header(type="dada"), PAYLOAD]),
    "a type that only the daemon sends": ("bad_header", [header(type="hidden"), PAYLOAD]),
    "an ack": ("bad_header", [pack({"v": 1, "type": "ack", "epoch": EPOCH, "next": 1, "done": 1, "durable": 0,
                                    "credit": 1})]),
    "a long type": ("bad_header", [header(type="x" * 2000), PAYLOAD]),
    "type as number": ("bad_header", [header(type=3), PAYLOAD]),
    "epoch below zero": ("bad_header", [header(epoch=-1), PAYLOAD]),
    "epoch as float": ("bad_header", [header(epoch=1.0), PAYLOAD]),
    "epoch as text": ("bad_header", [header(epoch="1"), PAYLOAD]),
    "pos below zero": ("bad_header", [header(pos=-1), PAYLOAD]),
    "pos as boolean": ("bad_header", [header(pos=True), PAYLOAD]),
    "t as text": ("bad_header", [header(t="now"), PAYLOAD]),
    "got as nil": ("bad_header", [msgpack.packb({"v": 1, "type": "flush", "got": None})]),
    "from as text": ("bad_header", [msgpack.packb({"v": 1, "type": "open", "from": "x"})]),
    "reply as number": ("bad_header", [msgpack.packb({"v": 1, "type": "open", "reply": 1})]),
    "flush as number": ("bad_header", [header(flush=1), PAYLOAD]),
    "end as text": ("bad_header", [header(end="yes"), PAYLOAD]),
    "no shape": ("bad_header", [header(shape=None), PAYLOAD]),
    "no dtype": ("bad_header", [header(dtype=None), PAYLOAD]),
    "shape as text": ("bad_header", [header(shape="1x64"), PAYLOAD]),
    "dtype as number": ("bad_header", [header(dtype=32), PAYLOAD]),
    "empty header": ("bad_header", [b"", PAYLOAD]),
    "not msgpack": ("bad_header", [b"\xc1", PAYLOAD]),
    "text": ("bad_header", [b'{"v": 1, "type": "data"}', PAYLOAD]),
    "an array": ("bad_header", [msgpack.packb([1, "data"]), PAYLOAD]),
    "nil": ("bad_header", [b"\xc0", PAYLOAD]),
    "cut short": ("bad_header", [header()[:-3], PAYLOAD]),
    "trailing byte": ("bad_header", [header() + b"\x00", PAYLOAD]),
    "two maps": ("bad_header", [header() + header(), PAYLOAD]),
    "duplicate key": ("bad_header", [b"\x85" + BODY + KEYS[0] + VALUES[0], PAYLOAD]),
    "duplicate unknown key": ("bad_header", [b"\x86" + BODY + 4 * msgpack.packb("x"), PAYLOAD]),
    "key as number": ("bad_header", [b"\x85" + BODY + b"\x07\x07", PAYLOAD]),
    "key that is not UTF-8": ("bad_header", [b"\x85" + BODY + b"\xa2\xff\xfe\x07", PAYLOAD]),
    "map that claims 4294967295 keys": ("bad_header", [b"\xdf\xff\xff\xff\xff" + BODY, PAYLOAD]),
    "array that claims 4294967295 items": ("bad_header", [b"\x85" + BODY + msgpack.packb("x") + b"\xdd\xff\xff\xff\xff",
                                                          PAYLOAD]),
    "text that claims 4294967295 bytes": ("bad_header", [b"\x85" + BODY + msgpack.packb("x") + b"\xdb\xff\xff\xff\xff",
                                                         PAYLOAD]),
    "nested a thousand deep": ("bad_header", [b"\x85" + BODY + msgpack.packb("x") + b"\x91" * 1000, PAYLOAD]),
    "header of more than 4096 bytes": ("bad_header", [header(x="x" * 4096), PAYLOAD]),
    "a column too many": ("bad_shape", [header(shape=[1, 65]), PAYLOAD + b"1234"]),
    "a column too few": ("bad_shape", [header(shape=[1, 63]), PAYLOAD[4:]]),
    "embeddings with one dimension": ("bad_dtype", [header(shape=[64]), PAYLOAD]),
    "three dimensions": ("bad_shape", [header(shape=[1, 1, 64]), PAYLOAD]),
    "no dimensions": ("bad_shape", [header(shape=[]), PAYLOAD]),
    "rows below zero": ("bad_shape", [header(shape=[-1, 64]), PAYLOAD]),
    "rows as float": ("bad_shape", [header(shape=[1.0, 64]), PAYLOAD]),
    "more bytes than there are": ("bad_shape", [header(shape=[2 ** 63, 64]), PAYLOAD]),
    "a product that wraps to a row": ("bad_shape", [header(shape=[2 ** 58 + 1, 64]), PAYLOAD]),
    "token ids with two dimensions": ("bad_dtype", [header(shape=[1, 64], dtype="int32"), PAYLOAD]),
    "float64": ("bad_dtype", [header(dtype="float64"), 2 * PAYLOAD]),
    "int64": ("bad_dtype", [header(dtype="int64", shape=[1]), 8 * b"\0"]),
    "empty dtype": ("bad_dtype", [header(dtype=""), PAYLOAD]),
    "dtype with a tail": ("bad_dtype", [header(dtype="float32\0"), PAYLOAD]),
    "a byte too many": ("bad_size", [header(), PAYLOAD + b"\0"]),
    "a byte too few": ("bad_size", [header(), PAYLOAD[1:]]),
    "an empty payload": ("bad_size", [header(), b""]),
    "no payload": ("bad_size", [header()]),
    "a row more than was sent": ("bad_size", [header(shape=[2, 64]), PAYLOAD]),
    "a thousand million rows": ("bad_size", [header(shape=[10 ** 9, 64]), PAYLOAD]),
    "token beyond the vocabulary": ("bad_token", rows_message(np.array([3, 50], np.int32))),
    "token below zero": ("bad_token", rows_message(np.array([3, -1], np.int32))),
    "token of 32 bits": ("bad_token", rows_message(np.array([2 ** 32 - 1], np.uint32))),
    "a NaN": ("non_finite", rows_message(LAST_IS_NAN)),
    "an infinity": ("non_finite", rows_message(ROW * np.float32("inf"))),
    "minus infinity": ("non_finite", rows_message(ROW * np.float32("-inf"))),
    "a half-precision infinity": ("non_finite", rows_message(ROW.astype(np.float16) * np.float16("inf"))),
    "a bfloat16 NaN": ("non_finite", rows_message(np.full((1, 64), 0xff81, np.uint16), "bfloat16")),
    "a NaN among rows that came before": ("non_finite", rows_message(LAST_IS_NAN, pos=0)),
    "a position beyond all": ("bad_shape", rows_message(ROW, pos=2 ** 63)),
    "a NaN with flush": ("non_finite", rows_message(ROW * np.float32("nan"), flush=True)),
    "a NaN with end": ("non_finite", rows_message(ROW * np.float32("nan"), end=True)),
    "a NaN in a new epoch": ("non_finite", rows_message(ROW * np.float32("nan"), epoch=9)),
    "four frames": ("bad_header", [header(), PAYLOAD, b"more"]),
    "no header": ("bad_header", []),
    "older epoch": ("stale_epoch", [header(epoch=2), PAYLOAD]),
    "older epoch, flush": ("stale_epoch", [msgpack.packb({"v": 1, "type": "flush", "epoch": 0})]),
    "older epoch, close": ("stale_epoch", [msgpack.packb({"v": 1, "type": "close", "epoch": 2})]),
}


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)  # ZMTP's


def connect(address):
    host, port = address[len("tcp://"):].rsplit(":", 1)
    return socket.create_connection((host, int(port)))


def zmtp_frame(body, flags=0):
    """A short one; flags: 1 where more follow, 4 for a command."""
    return bytes([flags, len(body)]) + body


def join(address, kind):
    """A connection from a socket of that kind (b"SUB"), the handshake done: messages may follow."""
    connection = connect(address)
    connection.sendall(GREETING + zmtp_frame(b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind, 4))
    with connection.makefile("rb") as answer:
        answer.read(len(GREETING) + 1)
        answer.read(answer.read(1)[0])  # the daemon's READY
    return connection


PING = zmtp_frame(b"\x04PING\0\0", 4)
FLUSH = zmtp_frame(b"flood", 1) + zmtp_frame(pack({"v": 1, "type": "flush"}))

# socket: (the kind of its peers, a message)
FLOODS = {
    "ingest": (b"DEALER", FLUSH),
    "control": (b"DEALER", zmtp_frame(pack({"v": 1, "cmd": "streams"}))),
    "subscribe": (b"PUB", FLUSH),
    "publish": (b"SUB", zmtp_frame(b"\0flood")),
}


def flood_and_break(address, kind, message):
    """More messages than a queue holds, a PING after each twenty; the connection breaks (RST) while they are read."""
    with join(address, kind) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        part = 20 * message + PING
        connection.sendall(part * ((1 << 18) // len(part)))


class Throttle:
    """
    Stands between one client and the daemon: bytes that the client sends pass only up to a limit, and in steps.

    The client's connection stays until close(), which is for when the client's socket is gone: where a connection breaks
    in the middle of a message while its socket is being closed, libzmq 4.3 ends the process (clean_pipes of
    session_base.cpp).
    """

    def __init__(self, address, limit, step=1 << 20, pause=0):
        self.limit, self.step, self.pause = limit, step, pause
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.client, self.daemon = None, connect(address)
        self.passed, self.closed = 0, threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        self.client, _ = self.listener.accept()
        threading.Thread(target=self.answer, daemon=True).start()
        with contextlib.suppress(OSError):
            while self.passed < self.limit:
                data = self.client.recv(min(self.step, self.limit - self.passed))
                self.daemon.sendall(data)
                self.passed += len(data)
                time.sleep(self.pause)

    def answer(self):
        """The daemon's bytes pass until it ends the connection."""
        with contextlib.suppress(OSError):
            while data := self.daemon.recv(65536):
                self.client.sendall(data)
        self.closed.set()

    def close(self):
        for connection in (self.listener, self.daemon, self.client):
            if connection:
                connection.close()


class Sleeper(Receiver):
    """A peer that opens streams, makes them owe it acks, and reads none of them."""

    def __init__(self, daemon, n):
        super().__init__(daemon, zmq.DEALER)
        for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, 1), (zmq.RCVBUF, 4096)):
            self.socket.setsockopt(option, value)
        self.socket.connect(daemon.ingest)
        self.n = n
        self.ask("open")
        for _ in range(20):  # more acks than its queue takes
            self.ask("flush")

    def ask(self, kind):
        for i in range(self.n):
            self.socket.send_multipart([b"sleeper-%d" % i, pack({"v": 1, "type": kind})])
