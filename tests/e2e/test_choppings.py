"""However the rows of a stream arrive, in whichever dtype, and whatever else is in the batch, its hidden states have
the same bits."""
import random

import pytest

from harness import CASES, Peer, exact_in_all, same_bytes, to_bfloat16

WINDOWS = [3, 8, 64]
STREAMS, ROUNDS = 40, 3  # choppings for each case: len(WINDOWS) * STREAMS * ROUNDS = 360
MOST_ROWS = 160


class Chopping:
    """The messages of one stream: random pieces in random dtypes with random flushes and repeats."""

    def __init__(self, stream, rows, rng):
        self.stream, self.rows, self.rng = stream, rows, rng
        self.pieces = self._cut()

    def _cut(self):
        n, rng = len(self.rows), self.rng
        longest = rng.choice([1, 3, 10, 40, n])
        flush_share = rng.choice([0, 0, 0.1, 0.5])
        repeat_share = rng.choice([0, 0, 0.2])
        pieces, start = [], 0
        while start < n:
            stop = min(n, start + rng.randint(1, longest))
            pieces.append((start, stop, rng.random() < flush_share))
            if rng.random() < repeat_share:
                first = rng.randint(0, start)
                pieces.append((first, rng.randint(first, stop), False))
            start = stop
        return pieces

    def send_next(self, peer):
        """Send one message; returns whether it was the last."""
        start, stop, flush = self.pieces.pop(0)
        header = {"end": True} if not self.pieces else {"flush": flush} if flush else {}
        rows = self.rows[start:stop]
        dtype = self.rng.choice(["float32", "float16", "bfloat16"])
        rows = to_bfloat16(rows) if dtype == "bfloat16" else rows.astype(dtype)
        peer.data(self.stream, rows, pos=start, dtype=dtype, **header)
        return not self.pieces


def interleave(choppings, peers, rng):
    """Send the messages of all streams in random order, the messages of one stream in theirs."""
    waiting = list(zip(choppings, peers))
    while waiting:
        chopping, peer = turn = rng.choice(waiting)
        for _ in range(rng.choice([1, 1, 5])):
            if chopping.send_next(peer):
                waiting.remove(turn)
                break


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", CASES)
def test_random_choppings(daemons, golden, case, window):
    rng = random.Random(f"{case} {window}")
    rows = exact_in_all(golden(case).rows[:MOST_ROWS])
    daemon = daemons(case, window=window, **{"limits.batch_rows": rng.choice([window, 4 * window, 4096])})
    peers = [Peer(daemon), Peer(daemon)]
    want = peers[0].encode(rows)
    for round_ in range(ROUNDS):
        streams = [b"%d-%d" % (round_, i) for i in range(STREAMS)]
        lengths = [len(rows)] + [rng.randint(1, len(rows)) for _ in streams[1:]]
        owners = [rng.choice(peers) for _ in streams]
        for stream, peer in zip(streams, owners):
            peer.open(stream)
        interleave([Chopping(s, rows[:n], rng) for s, n in zip(streams, lengths)], owners, rng)
        for stream, n, peer in zip(streams, lengths, owners):
            assert same_bytes(peer.hidden(stream, 0, n), want[:n]), f"{stream!r}, {n} rows"


def test_a_long_queue_joins_windows_and_changes_no_bit(daemons, golden):
    """A recording sent at once is computed as long segments; sent window by window it is not."""
    rows = golden("one-layer-long").rows
    peer = Peer(daemons("one-layer-long", window=16))
    want = peer.encode(rows)
    peer.open(b"slow")
    for start in range(0, len(rows), 16):
        peer.data(b"slow", rows[start:start + 16])
        peer.ack(b"slow", done=start + 16)
    assert same_bytes(peer.hidden(b"slow", 0, len(rows)), want)


def test_streams_do_not_leak_into_each_other_or_into_their_successors(daemons, golden):
    """A cache that is used again starts from zero, and the streams of one batch keep apart."""
    rows = golden("odd-shapes").rows
    peer = Peer(daemons("odd-shapes", window=4, **{"streams.max": 3}))
    want = peer.encode(rows[:20])
    for life in range(5):
        for stream, factor in ((b"loud", 1000), (b"same", 1), (b"other", -3)):
            peer.open(stream)
            peer.data(stream, rows[:20] * factor, end=True)
        assert same_bytes(peer.hidden(b"same", 0, 20), want), f"life {life}"
        for stream in (b"loud", b"other"):
            peer.hidden(stream, 0, 20)
