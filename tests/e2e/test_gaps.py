"""Rows that are missing: the three policies, on ROUTER and on SUB, for publishers that bind and that connect."""
import numpy as np
import pytest

from harness import Peer, Publisher, Subscriber, same_bytes

CASE, WINDOW = "seed-46032", 8


@pytest.fixture(scope="module")
def rows(golden):
    return golden(CASE).rows


@pytest.fixture
def address(short_path):
    return f"ipc://{short_path}/pub"


@pytest.fixture(params=["router", "sub, publisher binds", "sub, publisher connects"])
def lossy(request, daemons, address):
    """Function of settings: a daemon, a producer and a consumer of all streams."""
    def start(**settings):
        settings = {"window": WINDOW, **settings}
        if request.param == "router":
            daemon = daemons(CASE, **settings)
            producer = Peer(daemon)
        else:
            bind = request.param.endswith("binds")
            daemon = daemons(CASE, **{"sockets.subscribe": (">" if bind else "@") + address}, **settings)
            producer = Publisher(daemon, address, bind)
        return daemon, producer, Subscriber(daemon)
    start.is_router = request.param == "router"
    return start


def refusals(daemon):
    """How many messages were refused, by code, but for those with which Subscriber makes sure of its subscription."""
    return {code: n for code, n in daemon.ask("status")["refused"].items() if code != "closed"}


def send_with_a_hole(producer, stream, rows):
    """Rows 0 to 10 and 20 to the end, in pieces that know nothing of windows."""
    producer.data(stream, rows[:6], pos=0)
    producer.data(stream, rows[6:11], pos=6)
    for start in range(20, len(rows), 9):
        producer.data(stream, rows[start:start + 9], pos=start, end=start + 9 >= len(rows))


def test_without_a_gap(lossy, rows):
    daemon, producer, consumer = lossy()
    for start in range(0, len(rows), 5):
        producer.data(b"s", rows[start:start + 5], pos=start)
        producer.data(b"s", rows[max(0, start - 2):start + 1], pos=max(0, start - 2))
    producer.header(b"s", type="flush")
    assert same_bytes(consumer.hidden(b"s", 0, len(rows)), Peer(daemon).encode(rows))


def test_reset(lossy, rows):
    """What came before the gap is flushed; the row after it is position 0 of a new epoch with a zero cache."""
    daemon, producer, consumer = lossy(**({"streams.on_gap": "reset"} if lossy.is_router else {}))
    send_with_a_hole(producer, b"s", rows)
    assert same_bytes(consumer.hidden(b"s", 0, 11), Peer(daemon).encode(rows[:11]))
    event = consumer.take(b"s")
    assert (event.type, event.event, event.epoch, event.pos) == ("event", "reset", 1, 0)
    after = rows[20:]
    assert same_bytes(consumer.hidden(b"s", 0, len(after), epoch=1), Peer(daemon).encode(after))
    assert consumer.take(b"s").event == "closed"


def test_reset_twice_and_at_the_very_first_row(lossy, rows):
    daemon, producer, consumer = lossy(**{"streams.on_gap": "reset"})
    peer = Peer(daemon)
    producer.data(b"s", rows[3:14], pos=3)
    producer.data(b"s", rows[14:30], pos=14)
    producer.data(b"s", rows[40:60], pos=40, end=True)
    lives = []
    while not (lives and lives[-1] and lives[-1][-1].end):
        message = consumer.take(b"s")
        if message.type == "event":
            assert (message.event, message.pos) == ("reset", 0)
            lives.append([])
        else:
            assert message.epoch == consumer_epoch(lives, message)
            lives[-1].append(message)
    sizes = [sum(len(m.rows) for m in life) for life in lives]
    assert sizes == [27, 20]
    for life, part in zip(lives, (rows[3:30], rows[40:60])):
        assert b"".join(m.rows.tobytes() for m in life) == peer.encode(part).tobytes()


def consumer_epoch(lives, message):
    """Epochs only grow, and do not change within a life."""
    if lives[-1]:
        return lives[-1][0].epoch
    assert len(lives) == 1 or message.epoch > lives[-2][0].epoch
    return message.epoch


def test_skip(lossy, rows):
    """The missing rows count as never sent; positions go on from the producer's."""
    daemon, producer, consumer = lossy(**{"streams.on_gap": "skip"})
    send_with_a_hole(producer, b"s", rows)
    received = [*range(11), *range(20, len(rows))]
    positions, parts, events = [], [], []
    while len(positions) < len(received):
        message = consumer.take(b"s")
        if message.type == "event":
            events.append((message.event, message.epoch, message.pos))
        else:
            assert message.epoch == 0
            positions += range(message.pos, message.pos + len(message.rows))
            parts.append(message.rows.tobytes())
    assert positions == received
    assert events == [("gap", 0, 20)]
    assert b"".join(parts) == Peer(daemon).encode(rows[received]).tobytes()


KEPT = [*range(10), *range(12, 15)]  # rows of which two were skipped in an unfinished window


@pytest.fixture
def skipping(daemons, tmp_path):
    """Function of settings: a daemon that skips and keeps states."""
    return lambda **settings: daemons(CASE, window=WINDOW, **{
        "streams.on_gap": "skip", "state.dir": str(tmp_path / "states"), "state.interval": 1e6, **settings})


def feed_with_a_skip(peer, stream, rows):
    """Rows 0 to 9 and 12 to 14, which are accepted."""
    peer.data(stream, rows[:10], pos=0)
    peer.data(stream, rows[12:15], pos=12)
    peer.ack(stream, next=15)


def goes_on(peer, stream, rows, want, emitted=8):
    """Rows 15 to the end come; is everything as if the stream had never been away?"""
    peer.data(stream, rows[15:], pos=15, end=True)
    got, at = [], []
    while sum(map(len, got)) < len(want) - emitted:
        message = peer.take(stream, "hidden")
        assert message.epoch == 0
        got.append(message.rows)
        at.append(message.pos)
    assert at == sorted(at)
    return same_bytes(np.concatenate(got), want[emitted:])


@pytest.mark.parametrize("how", ["kill", "stop", "evict"])
def test_a_skip_in_a_window_that_is_saved(skipping, rows, how):
    """The rows on both sides of the hole are in the state, with their positions."""
    daemon = skipping(**{"streams.max": 1} if how == "evict" else {})
    peer = Peer(daemon)
    want = peer.encode(rows[[*KEPT, *range(15, len(rows))]])
    peer.open(b"s")
    feed_with_a_skip(peer, b"s", rows)
    peer.hidden(b"s", 0, 8)
    emitted = 8
    if how == "evict":
        Peer(daemon).encode(rows)  # a stream that needs its place
        assert b"s" not in [stream["stream"] for stream in daemon.ask("streams")["streams"]]
    else:
        assert daemon.ask("snapshot")["ok"]
        daemon.terminate() if how == "stop" else daemon.kill()
        daemon.wait()
        daemon.start()
        peer = Peer(daemon)
        assert peer.open(b"s").next == 15
        emitted = len(KEPT) if how == "stop" else 8
    assert goes_on(peer, b"s", rows, want, emitted)


def test_a_skip_in_a_state_that_is_copied(skipping, rows):
    """By fork, and by export and import."""
    daemon = skipping()
    peer = Peer(daemon)
    want = peer.encode(rows[[*KEPT, *range(15, len(rows))]])
    feed_with_a_skip(peer, b"s", rows)
    state = daemon.ask("export", stream=b"s")
    assert (state["position"], state["pending"]) == (8, 5)
    assert daemon.ask("import", stream=b"imported", state=state["state"])["next"] == 15
    assert daemon.ask("fork", stream=b"s", to=b"forked")["next"] == 15
    for stream in b"imported", b"forked":
        peer.open(stream)
        assert goes_on(peer, stream, rows, want)


def test_reject(lossy, rows):
    """Everything after the hole is refused, until somebody sends the missing rows."""
    daemon, producer, consumer = lossy(**{"streams.on_gap": "reject"})
    send_with_a_hole(producer, b"s", rows)
    producer.data(b"s", rows[11:], pos=11, end=True)
    assert same_bytes(consumer.hidden(b"s", 0, len(rows)), Peer(daemon).encode(rows))
    assert refusals(daemon) == {"gap": 5}


def test_no_reset_for_rows_that_are_refused(lossy, rows):
    daemon, producer, consumer = lossy(**{"streams.on_gap": "reset"})
    bad = rows[9:12].copy()
    bad[2, 5] = np.nan
    producer.data(b"s", rows[:5], pos=0)
    producer.data(b"s", bad, pos=9)
    producer.data(b"s", rows[5:], pos=5, end=True)
    assert same_bytes(consumer.hidden(b"s", 0, len(rows)), Peer(daemon).encode(rows))
    assert refusals(daemon) == {"non_finite": 1}


def test_a_publisher_that_knows_nothing_of_resets(daemons, address, rows):
    """Its next epoch has the number that the reset took: it begins anew all the same, in one beyond."""
    daemon = daemons(CASE, window=WINDOW, **{"sockets.subscribe": ">" + address})
    publisher, consumer = Publisher(daemon, address, bind=True), Subscriber(daemon)
    publisher.data(b"s", rows[:5], pos=0, epoch=10)
    publisher.data(b"s", rows[9:20], pos=9, epoch=10)
    publisher.data(b"s", rows, pos=0, epoch=11, end=True)
    consumer.hidden(b"s", 0, 5, epoch=10)
    assert consumer.take(b"s").event == "reset"
    consumer.hidden(b"s", 0, 11, epoch=11)
    assert same_bytes(consumer.hidden(b"s", 0, len(rows), epoch=12), Peer(daemon).encode(rows))


def test_a_new_epoch_after_a_reset(lossy, rows):
    """The producer's own epoch goes on meaning what it meant: the next one starts anew, older ones are over."""
    daemon, producer, consumer = lossy(**{"streams.on_gap": "reset"})
    want = Peer(daemon).encode(rows)
    producer.data(b"s", rows[:5], pos=0, epoch=10)
    producer.data(b"s", rows[9:20], pos=9, epoch=10)
    producer.data(b"s", rows[20:25], pos=20, epoch=10)
    producer.data(b"s", rows[:7], pos=0, epoch=9)
    producer.data(b"s", rows, pos=0, epoch=12, end=True)
    assert same_bytes(consumer.hidden(b"s", 0, 5, epoch=10), want[:5])
    assert consumer.take(b"s").event == "reset"
    assert same_bytes(consumer.hidden(b"s", 0, 16, epoch=11), Peer(daemon).encode(rows[9:25]))
    assert same_bytes(consumer.hidden(b"s", 0, len(rows), epoch=12), want)
    assert refusals(daemon) == {"stale_epoch": 1}


def test_the_numbering_of_an_ack_is_used_and_a_gap_follows(daemons, rows):
    """Then that numbering goes on to be understood, and the one before it is over: nothing is applied twice."""
    daemon = daemons(CASE, window=WINDOW, **{"streams.on_gap": "reset"})
    peer = Peer(daemon)
    peer.open(b"s")
    peer.data(b"s", rows[:2], pos=0)
    peer.data(b"s", rows[5:8], pos=5)
    assert peer.ack(b"s", epoch=1, next=3).epoch == 1
    peer.data(b"s", rows[10:11], pos=5, epoch=1)
    peer.data(b"s", rows[11:12], pos=6, epoch=1)
    for epoch, pos in (0, 6), (0, 7), (0, 12):
        peer.data(b"s", rows[pos:pos + 1], pos=pos)
        assert peer.refusal(b"s", "stale_epoch").epoch == 2
    peer.data(b"s", rows[11:14], pos=1, epoch=2, end=True)
    assert same_bytes(peer.hidden(b"s", 0, 2), peer.encode(rows[:2]))
    assert same_bytes(peer.hidden(b"s", 0, 3, epoch=1), peer.encode(rows[5:8]))
    assert same_bytes(peer.hidden(b"s", 0, 4, epoch=2), peer.encode(rows[10:14]))


def test_the_last_epoch(daemons, rows):
    """There is none after it, so none that consumers would take for an older one."""
    daemon = daemons(CASE, window=WINDOW, **{"streams.on_gap": "reset"})
    peer, last = Peer(daemon), 2 ** 64 - 1
    peer.data(b"s", rows[:2], pos=0, epoch=last)
    peer.data(b"s", rows[5:8], pos=5, epoch=last)
    peer.refusal(b"s", "stale_epoch")
    state = daemon.ask("export", stream=b"s")["state"]
    for answer in daemon.ask("reset", stream=b"s"), daemon.ask("import", stream=b"s", state=state):
        assert answer["code"] == "stale_epoch"
    peer.open(b"s", epoch=last)
    peer.data(b"s", rows[2:], pos=2, epoch=last, end=True)
    assert same_bytes(peer.hidden(b"s", 0, len(rows), epoch=last), peer.encode(rows))


def test_a_publisher_that_knows_nothing_of_the_last_epoch(daemons, address, rows):
    """A reset took it, so the publisher's own next one is refused, and nothing becomes of the stream."""
    daemon = daemons(CASE, window=WINDOW, **{"sockets.subscribe": ">" + address})
    publisher, consumer, last = Publisher(daemon, address, bind=True), Subscriber(daemon), 2 ** 64 - 1
    publisher.data(b"s", rows[:5], pos=0, epoch=last - 1)
    publisher.data(b"s", rows[9:20], pos=9, epoch=last - 1)
    publisher.data(b"s", rows, pos=0, epoch=last)
    publisher.data(b"s", rows[20:], pos=20, epoch=last - 1, end=True)
    consumer.hidden(b"s", 0, 5, epoch=last - 1)
    assert consumer.take(b"s").event == "reset"
    assert same_bytes(consumer.hidden(b"s", 0, len(rows) - 9, epoch=last), Peer(daemon).encode(rows[9:]))
    assert refusals(daemon) == {"stale_epoch": 1}


def test_many_publishers_one_of_them_with_gaps(daemons, rows, address):
    daemon = daemons(CASE, window=WINDOW, **{"sockets.subscribe": "@" + address})
    good, bad = Publisher(daemon, address, False), Publisher(daemon, address, False)
    consumer = Subscriber(daemon)
    for start in range(0, len(rows), 4):
        good.data(b"good", rows[start:start + 4], pos=start, end=start + 4 >= len(rows))
        bad.data(b"bad", rows[start:start + 3], pos=start)
    assert same_bytes(consumer.hidden(b"good", 0, len(rows)), Peer(daemon).encode(rows))
    assert refusals(daemon) == {}


def test_a_peer_takes_a_stream_over_from_publishers(daemons, rows, address):
    daemon = daemons(CASE, window=WINDOW, **{"sockets.subscribe": address})
    publisher, peer, consumer = Publisher(daemon, address, False), Peer(daemon), Subscriber(daemon)
    publisher.data(b"s", rows[:11], pos=0)
    consumer.hidden(b"s", 0, 8)
    peer.data(b"s", rows[11:], pos=11)
    peer.refusal(b"s", "denied")
    assert peer.open(b"s").next == 11
    publisher.data(b"s", rows[11:30] * 9, pos=11)
    while "denied" not in refusals(daemon) or refusals(daemon)["denied"] < 2:
        pass
    peer.data(b"s", rows[11:], end=True)
    assert same_bytes(consumer.hidden(b"s", 8, len(rows)), peer.encode(rows)[8:])
