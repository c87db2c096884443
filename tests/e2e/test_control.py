"""The control socket, spoken to directly."""
import os
import subprocess

import msgpack
import pytest
import zmq

from harness import MAMBA2CTL, Daemon, Peer, Subscriber, same_bytes

CASE, WINDOW = "seed-46032", 8


@pytest.fixture(scope="module")
def daemon(shared_daemons):
    return shared_daemons(CASE, window=WINDOW)


@pytest.fixture(scope="module")
def rows(golden):
    return golden(CASE).rows


def test_a_req_gets_its_answer_in_its_own_form(daemon):
    with daemon.context.socket(zmq.REQ) as socket:
        socket.connect(daemon.control)
        socket.send(msgpack.packb({"v": 1, "cmd": "status"}))
        assert socket.poll(10000)
        answer = msgpack.unpackb(socket.recv())
    assert answer["v"] == 1 and answer["ok"] is True and answer["window"] == WINDOW


def test_streams_are_listed_as_they_stand(daemon, rows):
    peer = Peer(daemon)
    peer.data(b"list-\xff\0", rows[:11])
    peer.ack(b"list-\xff\0", done=8)
    streams = [s for s in daemon.ask("streams", prefix=b"list-")["streams"]]
    assert [(s["stream"], s["epoch"], s["next"], s["done"]) for s in streams] == [(b"list-\xff\0", 0, 11, 8)]


def test_more_streams_than_are_listed(daemons):
    """With the longest of ids; how many there are is said."""
    daemon = daemons(CASE, window=WINDOW)
    peer = Peer(daemon)
    for i in range(1001):
        peer.header(b"%0255d" % i, type="open")
    for i in range(1001):
        peer.take(b"%0255d" % i, "ack")
    answer = daemon.ask("streams")
    assert answer["ok"] and len(answer["streams"]) == 1000 and answer["total"] == 1001


def test_close_and_reset(daemon, rows):
    peer, consumer = Peer(daemon), Subscriber(daemon, b"ctl-")
    want = peer.encode(rows)
    for stream in (b"ctl-close", b"ctl-reset"):
        peer.open(stream)
        peer.data(stream, rows[:11])
        peer.ack(stream, next=11)
    assert daemon.ask("close", stream=b"ctl-close")["ok"]
    assert same_bytes(consumer.hidden(b"ctl-close", 0, 11), want[:11])
    assert consumer.take(b"ctl-close").event == "closed"

    assert daemon.ask("reset", stream=b"ctl-reset")["ok"]
    assert same_bytes(consumer.hidden(b"ctl-reset", 0, 11), want[:11])
    event = consumer.take(b"ctl-reset")
    assert (event.event, event.epoch, event.pos) == ("reset", 1, 0)
    peer.data(b"ctl-reset", rows[:5])
    peer.refusal(b"ctl-reset", "stale_epoch")
    peer.data(b"ctl-reset", rows, epoch=1, end=True)
    assert same_bytes(consumer.hidden(b"ctl-reset", 0, len(rows), epoch=1), want)


@pytest.mark.parametrize("request_", [b"", b"\xc1", b"\x80", b"\xdf\xff\xff\xff\xff", msgpack.packb([1]),
                                      msgpack.packb({"v": 1}), msgpack.packb({"v": 1, "cmd": "explode"}),
                                      msgpack.packb({"v": 2, "cmd": "status"}), msgpack.packb({"v": 1, "cmd": 3}),
                                      msgpack.packb({"v": 1, "cmd": "close"}), b"x" * 100000,
                                      *(msgpack.packb({"v": 1, "cmd": cmd, **arguments}) for cmd, arguments in (
                                          ("streams", {"prefix": 3}), ("reset", {"stream": 3}), ("reset", {}),
                                          ("reset", {"stream": b"nobody"}), ("close", {"stream": None}),
                                          ("export", {}), ("export", {"stream": b""}), ("export", {"stream": 7}),
                                          ("export", {"stream": b"x" * 256}), ("fork", {"stream": b"s"}),
                                          ("fork", {"stream": b"s", "to": b""}), ("import", {}),
                                          ("import", {"state": b"x", "stream": 3}), ("import", {"state": b"x"}),
                                          ("import", {"state": 3}), ("snapshot", {}))),
                                      msgpack.packb({"v": 1, "cmd": "close", "stream": b"nobody"})])
def test_bad_requests_are_answered(daemon, request_):
    with daemon.context.socket(zmq.DEALER) as socket:
        socket.connect(daemon.control)
        socket.send(request_)
        assert socket.poll(10000)
        answer = msgpack.unpackb(socket.recv())
    assert answer["v"] == 1 and answer["ok"] is False
    assert isinstance(answer["code"], str) and isinstance(answer["message"], str) and answer["message"]


def test_frames_that_are_no_request_are_ignored(daemon):
    with daemon.context.socket(zmq.DEALER) as socket:
        socket.connect(daemon.control)
        socket.send_multipart([b"a", b"b", b"c"])
        socket.send_multipart([b"", b""])
        assert daemon.ask("status")["ok"]


@pytest.mark.parametrize("variable, subfolder", [("RUNTIME_DIRECTORY", ""), ("XDG_RUNTIME_DIR", "mamba2d/")])
def test_daemon_and_mamba2ctl_meet_where_nobody_said(golden, short_path, variable, subfolder):
    """sockets.control is auto, and there is no --control: a service, and a user's own daemon."""
    if variable == "XDG_RUNTIME_DIR" and os.geteuid() == 0:
        pytest.skip("root's daemon is in /run")
    daemon = Daemon(golden(CASE).folder, start=False, **{"sockets.control": ["auto"]})
    daemon.environment = {variable: short_path}
    daemon.control = f"ipc://{short_path}/{subfolder}control"
    daemon.start()
    try:
        asked = subprocess.run([MAMBA2CTL, "status"], env={**os.environ, variable: short_path}, capture_output=True)
        assert asked.returncode == 0, asked
        elsewhere = subprocess.run([MAMBA2CTL, "status"], env={**os.environ, variable: short_path + "/none"},
                                   capture_output=True, text=True)
        assert elsewhere.returncode == 3 and "/none" in elsewhere.stderr
    finally:
        daemon.close()
