"""Whatever a client may say wrong is refused by name and changes nothing: the stream goes on as if it had not been."""
import socket
import tempfile

import msgpack
import numpy as np
import pytest

from harness import Peer, Publisher, Subscriber, data_frames, pack, same_bytes

CASE, WINDOW = "causal-lm-sharded", 8  # a checkpoint with token embeddings
BEFORE = 11  # rows before the bad message: a window and a part of one


def header(**changes):
    """A good data header for one row but for the changes; None leaves a key out."""
    good = {"v": 1, "type": "data", "shape": [1, 64], "dtype": "float32", **changes}
    return pack({key: value for key, value in good.items() if value is not None})


def rows_message(rows, dtype=None, **changes):
    """A data message of these rows in the stream's epoch."""
    return data_frames(b"", rows, dtype, **{"epoch": EPOCH, **changes})[1:]


EPOCH = 3  # of the streams below
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
    "a NaN with flush": ("non_finite", rows_message(ROW * np.float32("nan"), flush=True)),
    "a NaN with end": ("non_finite", rows_message(ROW * np.float32("nan"), end=True)),
    "a NaN in a new epoch": ("non_finite", rows_message(ROW * np.float32("nan"), epoch=9)),
    "four frames": ("bad_header", [header(), PAYLOAD, b"more"]),
    "no header": ("bad_header", []),
    "older epoch": ("stale_epoch", [header(epoch=2), PAYLOAD]),
    "older epoch, flush": ("stale_epoch", [msgpack.packb({"v": 1, "type": "flush", "epoch": 0})]),
    "older epoch, close": ("stale_epoch", [msgpack.packb({"v": 1, "type": "close", "epoch": 2})]),
}


def finish(peer, stream, rows, start, **header):
    """Send the rows from start on in pieces, and end."""
    for i in range(start, len(rows), 7):
        peer.data(stream, rows[i:i + 7], epoch=EPOCH, end=i + 7 >= len(rows), **header)


@pytest.fixture(scope="module")
def rows(golden):
    return golden(CASE).rows


@pytest.mark.parametrize("bad", BAD)
def test_router_answers_and_nothing_changes(shared_daemons, rows, bad):
    code, frames = BAD[bad]
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    stream = bad.encode()
    want = peer.encode(rows)
    peer.open(stream, epoch=EPOCH)
    peer.data(stream, rows[:BEFORE], epoch=EPOCH)
    peer.frames(stream, *frames)
    peer.refusal(stream, code)
    peer.open(stream, epoch=EPOCH, next=BEFORE)
    finish(peer, stream, rows, BEFORE)
    assert same_bytes(peer.hidden(stream, 0, len(rows), epoch=EPOCH), want)
    peer.close()


@pytest.mark.parametrize("bad", BAD)
def test_subscribe_drops_it_and_nothing_changes(shared_daemons, rows, bad, lane):
    daemon, publisher, subscriber = lane
    stream = b"sub " + bad.encode()
    publisher.data(stream, rows[:BEFORE], epoch=EPOCH)
    publisher.frames(stream, *BAD[bad][1])
    finish(publisher, stream, rows, BEFORE)
    want = Peer(daemon).encode(rows)
    assert same_bytes(subscriber.hidden(stream, 0, len(rows), epoch=EPOCH), want)


@pytest.fixture(scope="module")
def lane(shared_daemons):
    """A daemon with a producer on its SUB and a consumer."""
    with tempfile.TemporaryDirectory(prefix="mamba2d-") as folder:
        address = f"ipc://{folder}/pub"
        daemon = shared_daemons(CASE, window=WINDOW, **{"sockets.subscribe": address})
        yield daemon, Publisher(daemon, address, bind=False), Subscriber(daemon, b"sub ")


@pytest.mark.parametrize("stream", [b"", b"x" * 256, b"x" * 100000], ids=["empty", "256 bytes", "100000 bytes"])
@pytest.mark.parametrize("kind", ["open", "data", "flush", "close"])
def test_stream_id_of_a_wrong_length(shared_daemons, stream, kind):
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    streams = peer.daemon.ask("status")["streams"]
    if kind == "data":
        peer.data(stream, ROW)
    else:
        peer.header(stream, type=kind)
    message = peer.receive()
    assert (message.type, message.code) == ("error", "bad_header")
    assert peer.daemon.ask("status")["streams"] == streams
    peer.close()


@pytest.mark.parametrize("stream", [b"x" * 255, b"\0", bytes(range(256))[1:]])
def test_stream_ids_are_any_bytes(shared_daemons, rows, stream):
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    peer.open(stream)
    peer.data(stream, rows[:9], end=True)
    assert same_bytes(peer.hidden(stream, 0, 9), peer.encode(rows[:9]))


def test_unknown_keys_are_ignored(shared_daemons, rows):
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    peer.open(b"keys", colour="blue")
    peer.data(b"keys", rows[:9], end=True, x=None, y=[1, {"z": b"bytes"}], shape_=1.5)
    assert same_bytes(peer.hidden(b"keys", 0, 9), peer.encode(rows[:9]))


def test_gap(shared_daemons, rows):
    """The rows behind a hole are refused, and so is what was already on its way; then the producer rewinds."""
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    peer.open(b"gap")
    peer.data(b"gap", rows[:5], pos=0)
    peer.data(b"gap", rows[6:9], pos=6)
    peer.data(b"gap", rows[9:11], pos=9, flush=True)
    peer.data(b"gap", rows[11:11], pos=11, end=True)
    for _ in range(3):
        assert peer.refusal(b"gap", "gap").expected == 5
    peer.data(b"gap", rows[5:], pos=5, end=True)
    assert same_bytes(peer.hidden(b"gap", 0, len(rows)), peer.encode(rows))


def test_gap_on_a_stream_that_is_not_open(shared_daemons, rows):
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    streams = peer.daemon.ask("status")["streams"]
    peer.data(b"late", rows[:5], pos=1)
    assert peer.refusal(b"late", "gap").expected == 0
    assert peer.daemon.ask("status")["streams"] == streams


@pytest.mark.parametrize("kind", ["flush", "close"])
def test_closed(shared_daemons, kind):
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    peer.header(b"nobody", type=kind)
    peer.refusal(b"nobody", "closed")


def test_closed_after_the_end(shared_daemons, rows):
    peer = Peer(shared_daemons(CASE, window=WINDOW))
    peer.open(b"ended")
    peer.data(b"ended", rows[:3], end=True)
    peer.header(b"ended", type="flush")
    peer.refusal(b"ended", "closed")


def test_too_many_streams(daemons, rows):
    peer = Peer(daemons(CASE, window=WINDOW, **{"streams.max": 2}))
    want = peer.encode(rows)
    for stream in (b"one", b"two"):
        peer.open(stream)
        peer.data(stream, rows[:BEFORE])
    peer.header(b"three", type="open")
    peer.refusal(b"three", "too_many_streams")
    peer.data(b"four", rows[:3])
    peer.refusal(b"four", "too_many_streams")
    for stream in (b"one", b"two"):
        peer.data(stream, rows[BEFORE:], end=True)
        assert same_bytes(peer.hidden(stream, 0, len(rows)), want)
    peer.open(b"three")


def test_denied_to_a_peer_that_does_not_feed_the_stream(shared_daemons, rows):
    owner, other = Peer(shared_daemons(CASE, window=WINDOW)), Peer(shared_daemons(CASE, window=WINDOW))
    owner.open(b"mine")
    owner.data(b"mine", rows[:BEFORE])
    owner.ack(b"mine", next=BEFORE)
    other.data(b"mine", rows[BEFORE:])
    other.header(b"mine", type="flush")
    other.header(b"mine", type="close")
    other.data(b"mine", rows, epoch=1)
    for _ in range(4):
        other.refusal(b"mine", "denied")
    owner.data(b"mine", rows[BEFORE:], end=True)
    assert same_bytes(owner.hidden(b"mine", 0, len(rows)), owner.encode(rows))


def test_a_message_of_more_bytes_than_allowed(daemons, rows):
    """libzmq cuts such a peer off; others do not notice."""
    daemon = daemons(CASE, window=WINDOW, **{"limits.message_bytes": 65536})
    good, bad = Peer(daemon), Peer(daemon)
    good.open(b"good")
    good.data(b"good", rows[:BEFORE])
    bad.data(b"bad", np.ones((1024, 64), np.float32))
    good.data(b"good", rows[BEFORE:], end=True)
    assert same_bytes(good.hidden(b"good", 0, len(rows)), good.encode(rows))
    assert b"bad" not in [s["stream"] for s in daemon.ask("streams")["streams"]]


NOISE = {"HTTP": b"GET / HTTP/1.1\r\n\r\n", "ones": b"\xff" * 1000, "zeros": bytes(64), "nothing": b"",
         "half a greeting": b"\xff" + bytes(8) + b"\x7f\x03"}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_noise_on_the_socket(daemons, rows, noise):
    """Somebody who does not speak ZMTP, and leaves in the middle or stays."""
    daemon = daemons(CASE, window=WINDOW, **{"sockets.ingest": ["tcp://127.0.0.1:*"]})
    address = daemon.ask("status")["sockets"]["ingest"]
    host, port = address[len("tcp://"):].rsplit(":", 1)
    with socket.create_connection((host, int(port))) as stays, socket.create_connection((host, int(port))) as leaves:
        stays.sendall(noise)
        leaves.sendall(noise)
        leaves.close()
        peer = Peer(daemon, address)
        peer.open(b"s")
        peer.data(b"s", rows, end=True)
        assert same_bytes(peer.hidden(b"s", 0, len(rows)), peer.encode(rows))
