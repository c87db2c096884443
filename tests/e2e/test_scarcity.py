"""Descriptors and memory run out: what is there goes on, what cannot be is refused, and all is well when they are back."""
import resource
import socket
import time

import numpy as np
import pytest

from harness import Daemon, Golden, Peer, relative_error, same_bytes

CASE = "bfloat16"  # a cache takes 200 kB


def test_descriptors_run_out(golden):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, limits[1]))  # the daemon starts with so few,
    daemon = Daemon(Golden(CASE).folder, window=8, **{"sockets.ingest": "tcp://127.0.0.1:*"})
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    try:
        assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)[0] == limits[1]  # and asks for more
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (60, 60))
        address = daemon.ask("status")["sockets"]["ingest"]
        peer = Peer(daemon, address)
        want = peer.encode(golden(CASE).rows)
        host, port = address.removeprefix("tcp://").split(":")
        crowd = [socket.create_connection((host, int(port))) for _ in range(100)]
        assert same_bytes(peer.encode(golden(CASE).rows), want)
        for connection in crowd:
            connection.close()
        assert same_bytes(Peer(daemon, address).encode(golden(CASE).rows), want)
    finally:
        daemon.close()


def test_a_descriptor_too_few_to_start(daemons):
    """The last thing that it opens is the socket that rows come by."""
    daemon = daemons(CASE, **{"metrics.listen": "127.0.0.1:0"})
    opened = min(daemon.descriptors() for _ in range(50) if not time.sleep(0.01))  # the connection of harness.py goes
    daemon.terminate()
    assert daemon.wait() == 0
    daemon.prefix = ["prlimit", f"--nofile={opened - 1}"]
    with pytest.raises(AssertionError, match="ended with 1"):
        daemon.start()
    assert f"cannot bind to {daemon.ingest}: Too many open files" in daemon.log()


@pytest.mark.native  # sanitizers reserve more addresses than any limit allows
def test_memory_runs_out(daemons, golden):
    rows = golden(CASE).rows
    daemon = daemons(CASE, window=8, threads=1, **{"streams.max": 100000, "limits.credit_rows": 1 << 30})
    peer = Peer(daemon)
    want = peer.encode(rows)
    limit = daemon.memory("VmSize") + 100_000_000
    resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, (limit, limit))
    names = [b"stream-%d" % i for i in range(2000)]
    for name in names:
        peer.header(name, type="open", reply=True)
    answers = {name: peer.take(name, "ack", "error") for name in names}
    alive = [name for name in names if answers[name].type == "ack"]
    assert 10 < len(alive) < 1900
    assert {answers[name].code for name in names if name not in alive} == {"internal"}

    first, second, *others = alive
    peer.data(first, np.tile(rows, (400, 1)), pos=0)  # 46 MB
    assert "memory" in peer.refusal(first, "internal").message
    for name in first, second:
        peer.data(name, rows, pos=0, end=True)
        assert same_bytes(peer.hidden(name, 0, len(rows)), want)
    for name in others:
        peer.header(name, type="close")
    for name in others:
        assert peer.take(name, "hidden").end
    assert same_bytes(peer.encode(rows), want)
    assert relative_error(want, golden(CASE).hidden["final"]) < 1e-5
