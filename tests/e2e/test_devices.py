"""Several devices in one daemon: streams are spread over them, and no bit tells which one computed them."""
import random

from harness import CASES, Peer, same_bytes

STREAMS = 12


def encode_all(daemon, rows, rng):
    """Streams of different lengths fed in turns, in pieces; returns the hidden states of each."""
    peer = Peer(daemon)
    lengths = {b"stream-%d" % i: rng.randint(1, len(rows)) for i in range(STREAMS)}
    for stream in lengths:
        peer.open(stream)
    sent = dict.fromkeys(lengths, 0)
    while sent:
        stream = rng.choice(list(sent))
        stop = min(lengths[stream], sent[stream] + rng.randint(1, 40))
        peer.data(stream, rows[sent[stream]:stop], pos=sent[stream], end=stop == lengths[stream])
        sent[stream] = stop
        if stop == lengths[stream]:
            del sent[stream]
    return {stream: peer.hidden(stream, 0, n) for stream, n in lengths.items()}


def test_the_best_there_is(daemons, golden):
    """auto takes it, and says what it passed over."""
    daemon = daemons(CASES[0], window=8, device="auto")
    assert len(Peer(daemon).encode(golden(CASES[0]).rows)) == len(golden(CASES[0]).rows)


def test_streams_are_spread_and_equal(daemons, golden):
    case = CASES[0]
    rows = golden(case).rows[:160]
    one = encode_all(daemons(case, window=8), rows, random.Random(1))
    daemon = daemons(case, window=8, device=["cpu", "cpu", "cpu"], threads=1)
    several = encode_all(daemon, rows, random.Random(1))
    for stream, want in one.items():
        assert same_bytes(several[stream], want), stream
    devices = daemon.ask("status")["devices"]
    assert [device["name"] for device in devices] == ["cpu"] * 3
    assert all(device["busy_s"] > 0 for device in devices)
    assert all(device["streams"] == 0 for device in devices)


def test_live_streams_are_counted(daemons, golden):
    case = CASES[0]
    daemon = daemons(case, window=8, device=["cpu", "cpu"], threads=1)
    peer = Peer(daemon)
    for i in range(10):
        peer.open(b"stream-%d" % i)
    assert [device["streams"] for device in daemon.ask("status")["devices"]] == [5, 5]
