"""SIGTERM and SIGINT: no more input, everything that was accepted is published, exit 0."""
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import zmq

from harness import (Golden, MAMBA2D, TIMEOUT, Peer, Receiver, Subscriber, data_frames, pack, same_bytes,
                     settings_arguments)

CASE, WINDOW = "eight-groups", 16


@pytest.fixture(scope="module")
def rows(golden):
    return np.tile(golden(CASE).rows, (80, 1))  # [7680, hidden_size]


def read_all(receiver, daemon):
    """All messages until the daemon has ended."""
    messages = receiver.inbox
    receiver.inbox = []
    while True:
        running = daemon.process.poll() is None
        message = receiver.receive(0.2)
        if message:
            messages.append(message)
        elif not running:
            return messages


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_in_the_middle_of_a_stream(daemons, rows, signal_):
    daemon = daemons(CASE, window=WINDOW)
    peer, consumer = Peer(daemon), Subscriber(daemon)
    want = peer.encode(rows)
    consumer.hidden(b"one-shot-%d" % (next(Peer._names) - 1), 0, len(rows))
    peer.open(b"cut")
    for start in range(0, len(rows), 7):
        peer.data(b"cut", rows[start:start + 7], pos=start)
    peer.ack(b"cut", next=1)
    daemon.terminate(signal_)
    published, replied = read_all(consumer, daemon), read_all(peer, daemon)
    assert daemon.wait() == 0

    last = [m for m in replied if m.type == "ack"][-1]
    assert last.next == last.done > 0, "what was accepted is done"
    for messages in (published, replied):
        hidden = [m for m in messages if m.stream == b"cut" and m.type == "hidden"]
        reached = 0
        for message in hidden:
            assert message.pos == reached
            reached += len(message.rows)
        assert reached == last.next
        assert same_bytes(np.concatenate([m.rows for m in hidden]), want[:reached])
    for message in replied:
        assert message.type != "error" or message.code in ("shutting_down", "gap"), message


def test_unfinished_windows_are_flushed(daemons, rows):
    daemon = daemons(CASE, window=WINDOW)
    peer, consumer = Peer(daemon), Subscriber(daemon)
    want = peer.encode(rows[:50])
    for i in range(40):
        peer.data(b"stream-%d" % i, rows[:i + 1])
    for i in range(40):
        peer.ack(b"stream-%d" % i, next=i + 1)
    daemon.terminate()
    assert daemon.wait() == 0
    for i in range(40):
        assert same_bytes(consumer.hidden(b"stream-%d" % i, 0, i + 1), want[:i + 1])


def test_drain_refuses_input_and_finishes_what_was_accepted(daemons, rows):
    """The same by request: the daemon stays up, so that one can see what it answers."""
    daemon = daemons(CASE, window=WINDOW)
    peer = Peer(daemon)
    want = peer.encode(rows[:20])
    peer.open(b"drained")
    peer.data(b"drained", rows[:20])
    peer.ack(b"drained", next=20)
    assert daemon.ask("drain")["ok"]
    assert same_bytes(peer.hidden(b"drained", 0, 20), want)
    peer.data(b"drained", rows[20:40])
    peer.refusal(b"drained", "shutting_down")
    peer.data(b"new", rows[:3])
    peer.refusal(b"new", "shutting_down")
    peer.header(b"new", type="open")
    peer.refusal(b"new", "shutting_down")


def test_a_peer_that_does_not_take_its_replies(daemons, rows):
    """It is given the time that there is; then the daemon says what it did not get rid of, and ends all the same."""
    daemon = daemons(CASE, window=1, shutdown_timeout=0.5, **{"limits.credit_rows": 1 << 30})
    late = Receiver(daemon, zmq.DEALER)
    late.socket.setsockopt(zmq.RCVHWM, 1)
    late.socket.connect(daemon.ingest)
    late.socket.send_multipart([b"late", pack({"v": 1, "type": "open", "reply": True})])
    late.socket.send_multipart(data_frames(b"late", np.tile(rows, (2, 1))))
    deadline = time.monotonic() + TIMEOUT
    while not daemon.ask("status")["stalls"]:
        assert time.monotonic() < deadline
    daemon.terminate()
    assert daemon.wait() == 1
    assert "not all that was accepted could be published" in daemon.log()


def test_at_rest(daemons):
    daemon = daemons(CASE)
    daemon.terminate()
    assert daemon.wait() == 0


def test_a_second_daemon_can_start_where_one_was_killed(daemons, rows):
    """Stale ipc sockets are no obstacle, and the streams begin at 0 again."""
    daemon = daemons(CASE, window=WINDOW)
    peer = Peer(daemon)
    want = peer.encode(rows[:100])
    daemon.kill()
    daemon.start()
    assert same_bytes(Peer(daemon).encode(rows[:100]), want)


@pytest.mark.parametrize("shared", ["ingest", "publish", "control"])
def test_a_second_daemon_leaves_the_sockets_of_the_first_alone(daemons, rows, shared, short_path):
    daemon = daemons(CASE, window=WINDOW)
    settings = {**daemon.settings, **{f"sockets.{name}": f"ipc://{short_path}/{name}"
                                      for name in ("ingest", "publish", "control") if name != shared}}
    second = subprocess.run([MAMBA2D, *settings_arguments(settings)], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert f"cannot bind to {daemon.settings[f'sockets.{shared}']}: another process listens there" in second.stderr
    if shared != "ingest":  # which is opened last: who is not ready takes no rows
        assert "warm in" not in second.stderr, "it has gone before it takes a device's memory and time"
    assert daemon.ask("status")["ok"]
    assert len(Peer(daemon).encode(rows)) == len(rows)


def test_a_daemon_that_does_not_get_ready_takes_no_rows(short_path):
    """They stay with their sender, for the next one that starts."""
    settings = {"model": Golden(CASE).folder, "device": "cuda:99", "metrics.listen": "",
                **{f"sockets.{name}": f"ipc://{short_path}/{name}" for name in ("ingest", "publish", "control")}}
    daemon = subprocess.run([MAMBA2D, *settings_arguments(settings)], capture_output=True, text=True, timeout=60)
    assert daemon.returncode == 1 and "device cuda" in daemon.stderr
    assert os.path.exists(f"{short_path}/publish") and not os.path.exists(f"{short_path}/ingest")
