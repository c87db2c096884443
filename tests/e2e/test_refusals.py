"""Whatever a client may say wrong is refused by name and changes nothing: the stream goes on as if it had not been."""
import re
import shutil
import socket
import tempfile

import numpy as np
import pytest

from attacks import BAD, CASE, EPOCH, ROW
from harness import Daemon, Peer, Publisher, Subscriber, same_bytes

WINDOW = 8
BEFORE = 11  # rows before the bad message: a window and a part of one


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


def test_log_says_when_and_to_which_stream(daemons):
    peer = Peer(daemons(CASE, window=WINDOW, **{"log.level": "info"}))
    for stream in "narrow stream", "0xff00":
        id = stream.encode() if " " in stream else b"\xff\0"
        peer.frames(id, *BAD["a column too few"][1])
        peer.refusal(id, "bad_shape")
        line = r"^<6>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z stream " + stream + r": refused \(bad_shape\): "
        assert re.search(line, peer.daemon.log(), re.MULTILINE), peer.daemon.log()


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
    """It is refused; libzmq cuts off who sends twice as many.  Others do not notice."""
    daemon = daemons(CASE, window=WINDOW, **{"limits.message_bytes": 65536})
    good, bad = Peer(daemon), Peer(daemon)
    good.open(b"good")
    good.data(b"good", rows[:BEFORE])
    bad.data(b"bad", np.ones((257, 64), np.float32))
    assert "limits.message_bytes allows 65536: split" in bad.refusal(b"bad", "bad_size").message
    bad.data(b"bad", np.ones((1024, 64), np.float32))
    good.data(b"good", rows[BEFORE:], end=True)
    assert same_bytes(good.hidden(b"good", 0, len(rows)), good.encode(rows))
    assert b"bad" not in [s["stream"] for s in daemon.ask("streams")["streams"]]


def test_token_ids_for_a_model_without_embeddings(golden, tmp_path, rows):
    shutil.copytree(golden("seed-46032").folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"embeddings.weight"', b'"unembedded.weight"'))
    daemon = Daemon(str(tmp_path / "model"), window=WINDOW)
    peer = Peer(daemon)
    peer.data(b"s", np.arange(5, dtype=np.int32))
    peer.refusal(b"s", "bad_dtype")
    peer.encode(rows)
    daemon.close()


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
