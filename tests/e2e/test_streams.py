"""What a stream does between its first row and its last, seen from a producer on ROUTER and a consumer on SUB."""
import numpy as np
import pytest

from harness import Peer, Subscriber, same_bytes

CASE, WINDOW = "seed-46032", 8


@pytest.fixture(scope="module")
def rows(golden):
    return golden(CASE).rows


@pytest.fixture(scope="module")
def daemon(shared_daemons):
    return shared_daemons(CASE, window=WINDOW)


@pytest.fixture
def peer(daemon):
    peer = Peer(daemon)
    yield peer
    peer.close()


def test_counters_of_acks(daemon, peer, rows):
    ack = peer.open(b"acks")
    assert (ack.epoch, ack.next, ack.done, ack.durable) == (0, 0, 0, 0)
    assert ack.credit == daemon.ask("status")["credit_rows"]
    peer.data(b"acks", rows[:WINDOW + 3])
    ack = peer.ack(b"acks", next=WINDOW + 3, done=WINDOW)
    assert (ack.next, ack.done) == (WINDOW + 3, WINDOW)
    peer.header(b"acks", type="flush")
    assert peer.ack(b"acks", done=WINDOW + 3).next == WINDOW + 3
    assert peer.open(b"acks").next == WINDOW + 3, "as it was left"


def test_the_rows_of_an_unfinished_window_wait(peer, rows):
    peer.open(b"wait")
    peer.data(b"wait", rows[:WINDOW + 3])
    peer.hidden(b"wait", 0, WINDOW)
    assert peer.silent()
    peer.data(b"wait", rows[WINDOW + 3:2 * WINDOW])
    peer.hidden(b"wait", WINDOW, 2 * WINDOW)


@pytest.mark.parametrize("how", ["flush message", "flush with rows", "flush without rows", "flush with no bytes"])
def test_flush_emits_each_row_once(peer, rows, how):
    stream = how.encode()
    want = peer.encode(rows)
    peer.open(stream)
    if how == "flush with rows":
        peer.data(stream, rows[:3], flush=True)
    else:
        peer.data(stream, rows[:3])
        if how == "flush message":
            peer.header(stream, type="flush")
        elif how == "flush without rows":
            peer.header(stream, type="data", shape=[0, 64], dtype="float32", flush=True)
        else:
            peer.data(stream, rows[:0], flush=True)
    assert same_bytes(peer.hidden(stream, 0, 3), want[:3])
    peer.header(stream, type="flush")
    assert peer.silent(), "nothing is left to flush"
    peer.data(stream, rows[3:5], flush=True)
    assert same_bytes(peer.hidden(stream, 3, 5), want[3:5])
    peer.data(stream, rows[5:])
    assert same_bytes(peer.hidden(stream, 5, len(rows)), want[5:])
    assert peer.silent()


def test_flush_after(shared_daemons, rows):
    peer = Peer(shared_daemons(CASE, window=WINDOW, **{"streams.flush_after": 0.1}))
    peer.open(b"timer")
    for start, stop in ((0, 3), (3, 13), (13, 14)):
        peer.data(b"timer", rows[start:stop])
        assert same_bytes(peer.hidden(b"timer", start, stop), peer.encode(rows)[start:stop])


def test_duplicates_are_dropped_and_the_rest_is_used(daemon, peer, rows):
    want = peer.encode(rows)
    before = daemon.ask("status")["duplicate_rows"]
    peer.open(b"again")
    peer.data(b"again", rows[:11], pos=0)
    peer.data(b"again", rows[:11], pos=0)
    peer.data(b"again", rows[5:20], pos=5)
    peer.data(b"again", rows[2:4] * 1000, pos=2, flush=True)
    assert same_bytes(peer.hidden(b"again", 0, 20), want[:20])
    assert peer.ack(b"again", done=20).next == 20
    peer.data(b"again", rows, pos=0, end=True)
    assert same_bytes(peer.hidden(b"again", 20, len(rows)), want[20:])
    assert daemon.ask("status")["duplicate_rows"] == before + 11 + 6 + 2 + 20


def test_end_closes(daemon, peer, rows):
    consumer = Subscriber(daemon, b"end-")
    peer.open(b"end-rows")
    peer.data(b"end-rows", rows[:WINDOW])
    peer.data(b"end-rows", rows[WINDOW:13], end=True)
    first, last = (consumer.take(b"end-rows") for _ in range(2))
    assert (first.pos, first.shape, first.end) == (0, [WINDOW, 64], None)
    assert (last.pos, last.shape, last.end) == (WINDOW, [13 - WINDOW, 64], True)
    closed = consumer.take(b"end-rows")
    assert (closed.type, closed.event, closed.epoch, closed.pos) == ("event", "closed", 0, 13)
    peer.header(b"end-rows", type="flush")
    peer.refusal(b"end-rows", "closed")


@pytest.mark.parametrize("how", ["end", "close"])
def test_end_with_nothing_left_is_said_all_the_same(daemon, peer, rows, how):
    stream = b"end-nothing-" + how.encode()
    consumer = Subscriber(daemon, stream)
    peer.open(stream)
    peer.data(stream, rows[:WINDOW], flush=True)
    peer.hidden(stream, 0, WINDOW)
    peer.ack(stream, done=WINDOW)
    if how == "end":
        peer.data(stream, rows[:0], end=True)
    else:
        peer.header(stream, type="close")
    for receiver in (peer, consumer):
        if receiver is consumer:
            receiver.hidden(stream, 0, WINDOW)
        last = receiver.take(stream, "hidden")
        assert (last.pos, last.shape, last.dtype, last.end) == (WINDOW, [0, 64], "float32", True)
    assert consumer.take(stream).event == "closed"


def test_close_flushes(peer, rows):
    peer.open(b"close")
    peer.data(b"close", rows[:13])
    peer.header(b"close", type="close")
    assert same_bytes(peer.hidden(b"close", 0, 13), peer.encode(rows)[:13])
    peer.open(b"close", next=0)  # the id is free again


def test_an_id_that_is_used_again_starts_from_nothing(peer, rows):
    want = peer.encode(rows)
    for _ in range(3):
        peer.data(b"reused", rows[:40] * 7, end=True)
        peer.open(b"reused")
        peer.data(b"reused", rows, end=True)
        assert same_bytes(peer.hidden(b"reused", 0, len(rows)), want)


def test_a_higher_epoch_starts_anew_and_the_old_life_is_flushed(daemon, peer, rows):
    consumer = Subscriber(daemon, b"epoch")
    want = peer.encode(rows)
    peer.open(b"epoch")
    peer.data(b"epoch", rows[:11] * 2)
    peer.data(b"epoch", rows[:13], epoch=4)
    assert peer.open(b"epoch", epoch=4, next=13).epoch == 4
    assert peer.open(b"epoch", epoch=7, next=0).epoch == 7
    peer.data(b"epoch", rows, epoch=7, end=True)
    two = peer.encode(rows[:11] * 2)
    for receiver in (peer, consumer):
        assert same_bytes(receiver.hidden(b"epoch", 0, 11), two)
        assert same_bytes(receiver.hidden(b"epoch", 0, 13, epoch=4), want[:13])
        assert same_bytes(receiver.hidden(b"epoch", 0, len(rows), epoch=7), want)


def test_reply_goes_to_who_asked_and_everything_to_the_publish_socket(daemon, peer, rows):
    consumer = Subscriber(daemon, b"reply")
    peer.open(b"reply-no", reply=False)
    peer.data(b"reply-no", rows, end=True)
    peer.open(b"reply-yes")
    peer.data(b"reply-yes", rows, end=True)
    replied = peer.hidden(b"reply-yes", 0, len(rows))
    peer.ack(b"reply-no", done=len(rows))
    assert peer.silent()
    assert same_bytes(consumer.hidden(b"reply-no", 0, len(rows)), replied)
    assert same_bytes(consumer.hidden(b"reply-yes", 0, len(rows)), replied)


def test_subscriptions_are_prefixes(daemon, peer, rows):
    consumer = Subscriber(daemon, b"prefix-a")
    for stream in (b"prefix-b", b"prefix-a", b"prefix-ab", b"prefix-"):
        peer.data(stream, rows[:5], end=True)
    for stream in (b"prefix-a", b"prefix-ab"):
        consumer.hidden(stream, 0, 5)
        assert consumer.take(stream).event == "closed"
    assert consumer.silent()


def test_data_opens_a_stream_that_is_not_open(peer, rows):
    peer.data(b"just data", rows[:9])
    assert peer.ack(b"just data", done=8).next == 9


def test_t_comes_back_with_the_row_that_ends_its_message(peer, rows):
    peer.open(b"clock")
    peer.data(b"clock", rows[:5], t=111)
    peer.data(b"clock", rows[5:8], t=222)
    peer.data(b"clock", rows[8:11], t=2 ** 64 - 1, flush=True)
    messages = [peer.take(b"clock", "hidden") for _ in range(2)]
    peer.data(b"clock", rows[11:16])
    messages.append(peer.take(b"clock", "hidden"))
    assert [(m.pos, m.t) for m in messages] == [(0, 222), (8, 2 ** 64 - 1), (11, None)]


def test_the_last_to_open_a_stream_feeds_it(daemon, rows):
    first, second = Peer(daemon), Peer(daemon)
    first.open(b"taken")
    first.data(b"taken", rows[:11])
    first.hidden(b"taken", 0, 8)
    assert second.open(b"taken").next == 11
    first.data(b"taken", rows[11:12])
    first.refusal(b"taken", "denied")
    second.data(b"taken", rows[11:], end=True)
    assert same_bytes(second.hidden(b"taken", 8, len(rows)), second.encode(rows)[8:])
    assert first.silent()


def test_open_from_before_what_was_emitted_rewinds(daemon, peer, rows):
    """Rows and hidden states come again from position 0; the publish socket sees each once."""
    consumer = Subscriber(daemon, b"resume")
    want = peer.encode(rows)
    peer.open(b"resume")
    peer.data(b"resume", rows[:20], flush=True)
    peer.hidden(b"resume", 0, 20)
    again = Peer(daemon)
    assert again.open(b"resume", **{"from": 20}).next == 20
    again.data(b"resume", rows[20:22])
    again.ack(b"resume", next=22)
    assert again.open(b"resume", **{"from": 20}).next == 22, "these rows were not emitted"
    peer.open(b"resume", next=0, **{"from": 12})
    peer.data(b"resume", rows, pos=0, end=True)
    assert same_bytes(peer.hidden(b"resume", 0, len(rows)), want)
    assert same_bytes(consumer.hidden(b"resume", 0, len(rows)), want)


def test_several_layers_are_separate_messages(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"output.layers": [1, "final", 0]})
    peer, consumer = Peer(daemon), Subscriber(daemon, b"layers")
    peer.open(b"layers")
    peer.data(b"layers", rows[:13], end=True)
    for receiver in (peer, consumer):
        messages = [receiver.take(b"layers", "hidden") for _ in range(6)]
        assert [(m.pos, m.layer) for m in messages] == [(pos, layer) for pos in (0, 8) for layer in (1, None, 0)]
        assert [m.end for m in messages] == 5 * [None] + [True]


def test_only_the_last_row_of_each_window(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"output.rows": "last"})
    want = Peer(daemons(CASE, window=WINDOW)).encode(rows)
    peer = Peer(daemon)
    peer.open(b"last")
    peer.data(b"last", rows[:30])
    peer.data(b"last", rows[30:])
    for window in range(len(rows) // WINDOW):
        message = peer.take(b"last", "hidden")
        assert (message.pos, message.shape) == ((window + 1) * WINDOW - 1, [1, 64])
        assert same_bytes(message.rows, want[message.pos:message.pos + 1])
    assert peer.ack(b"last", done=len(rows)).next == len(rows)


def test_idle_streams_are_evicted(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"streams.idle_timeout": 0.2})
    peer, consumer = Peer(daemon), Subscriber(daemon, b"idle")
    peer.open(b"idle")
    peer.data(b"idle", rows[:11])
    assert same_bytes(consumer.hidden(b"idle", 0, 11), peer.encode(rows)[:11])
    while True:
        message = consumer.take(b"idle")
        if message.type == "event":
            break
    assert (message.event, message.pos) == ("evicted", 11)
    peer.data(b"idle", rows[11:], pos=11)
    assert peer.refusal(b"idle", "gap").expected == 0


def test_two_clients_at_once(daemon, rows):
    """Their streams advance side by side, in the same batches."""
    peers = [Peer(daemon), Peer(daemon)]
    want = peers[0].encode(rows)
    for i, peer in enumerate(peers):
        peer.open(b"side-%d" % i)
    for start in range(0, len(rows), 5):
        for i, peer in enumerate(peers):
            peer.data(b"side-%d" % i, rows[start:start + 5], end=start + 5 >= len(rows))
    for i, peer in enumerate(peers):
        assert same_bytes(peer.hidden(b"side-%d" % i, 0, len(rows)), want)


def test_a_producer_that_leaves_does_not_take_its_rows_along(daemon, peer, rows):
    consumer = Subscriber(daemon, b"left")
    gone = Peer(daemon)
    gone.open(b"left")
    gone.data(b"left", rows[:11])
    gone.ack(b"left", next=11)
    gone.close()
    assert peer.open(b"left", reply=False).next == 11
    peer.data(b"left", rows[11:], end=True)
    assert same_bytes(consumer.hidden(b"left", 0, len(rows)), peer.encode(rows))


def test_rows_of_all_kinds_in_one_stream(shared_daemons, golden):
    """Each message says its own dtype: embeddings, halves and token ids may take turns."""
    want = golden("causal-lm-sharded")
    peer = Peer(shared_daemons("causal-lm-sharded", window=WINDOW))
    half = want.rows[20:31].astype(np.float16)
    rows = want.rows.copy()
    rows[20:31] = half
    peer.open(b"mixed")
    peer.data(b"mixed", want.rows[:10])
    peer.data(b"mixed", want.tokens[10:20].astype(np.uint8))
    peer.data(b"mixed", half)
    peer.data(b"mixed", want.tokens[31:], end=True)
    assert same_bytes(peer.hidden(b"mixed", 0, len(rows)), peer.encode(rows))
