#!/usr/bin/python3
"""Stream the ECG recording to mamba2d as a sensor would: one row for every 8 samples.

    publish.py --ingest ADDRESS [--speed 1]    lossless, to the daemon's ingest socket
    publish.py --pub ADDRESS [--speed 1]       as a PUB socket that the daemon's sockets.subscribe connects to

Needs the Python client (PYTHONPATH=protocol/python).
"""
import argparse
import time

import msgpack
import zmq
from mamba2d import Client

from recording import PATCH, RATE, Recording

ROWS_A_SECOND = RATE / PATCH


def pieces(rows, speed):
    """Yield rows piece by piece, each no earlier than a sensor running `speed` times as fast would have it."""
    n = max(1, round(ROWS_A_SECOND * speed / 5)) if speed else 1024
    start = time.monotonic()
    for first in range(0, len(rows), n):
        if speed:
            due = start + min(first + n, len(rows)) / (ROWS_A_SECOND * speed)
            time.sleep(max(0.0, due - time.monotonic()))
        yield first, rows[first:first + n]


def to_ingest(address, stream, rows, speed):
    with Client(address) as client:
        for first, piece in pieces(rows, speed):
            client.send(stream, piece, end=first + len(piece) == len(rows))


def to_subscribers(address, stream, rows, speed):
    """What a producer does that knows nothing of mamba2d but the message format."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.setsockopt(zmq.SNDHWM, 0)  # a PUB drops what its queue cannot hold
        socket.bind(address)
        socket.recv()  # the daemon's subscription: what is sent before it is lost
        for first, piece in pieces(rows, speed):
            header = {"v": 1, "type": "data", "pos": first, "shape": piece.shape, "dtype": "float32",
                      "end": first + len(piece) == len(rows)}
            socket.send_multipart([stream.encode(), msgpack.packb(header), piece])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--ingest", metavar="ADDRESS")
    to.add_argument("--pub", metavar="ADDRESS")
    parser.add_argument("--stream", default="ecg")
    parser.add_argument("--speed", type=float, default=1.0, help="times real time; 0: as fast as it goes")
    args = parser.parse_args()
    rows = Recording().rows()
    if args.ingest:
        to_ingest(args.ingest, args.stream, rows, args.speed)
    else:
        to_subscribers(args.pub, args.stream, rows, args.speed)


if __name__ == "__main__":
    main()
