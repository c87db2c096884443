"""A producer that loses nothing: it does what PROTOCOL.md, "Resuming", says, and checks what is promised for that.

It keeps its rows from `durable` on, confirms what it has got, and opens its streams with `from` on every connection.
Each hidden state that arrives, be it for the first time or again, must be the same bytes as without any interruption.
"""
import time

import msgpack
import zmq

from harness import Message, data_frames, pack, same_bytes


class Feed:
    """One stream of a Keeper: rows, and the hidden states `want` that they must get."""

    def __init__(self, name, rows, want):
        self.name, self.rows, self.want = name, rows, want
        self.have = 0          # hidden states before this position have arrived
        self.durable = 0       # the highest that was told: the rows before are gone
        self.is_open = False   # on this connection
        self.sent = 0
        self.asked = False     # for what is left, or for the end
        self.ended = False     # and that has arrived
        self.repeats = 0       # rows that came again


class Keeper:
    """Feeds streams from one socket, in pieces of random sizes; next_feed() makes one more whenever one has ended."""

    def __init__(self, daemon, random, next_feed, streams=3):
        self.daemon, self.random, self.next_feed = daemon, random, next_feed
        self.feeds = {}
        self.finished = []
        self.draining = False  # begin no new streams
        self.hold_until = 0
        self.socket = None
        for _ in range(streams):
            self._begin()

    def _begin(self):
        feed = self.next_feed()
        self.feeds[feed.name] = feed
        if self.socket:
            self._open(feed)

    # --- sending

    def connect(self):
        if self.socket:
            self.socket.close(0)
        self.socket = self.daemon.context.socket(zmq.DEALER)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        self.socket.connect(self.daemon.ingest)
        self.hold_until = 0
        for feed in self.feeds.values():
            self._open(feed)

    def _open(self, feed):
        feed.is_open = feed.asked = False
        header = {"v": 1, "type": "open", "reply": True, "from": feed.have}
        self.socket.send_multipart([feed.name, pack(header)])

    def _header(self, feed):
        """Keys for any message: as a rule, what has been got."""
        return {"got": feed.have} if self.random.random() < 0.7 else {}

    def send(self, feed):
        """The next message of a stream: rows, and now and then a flush; at its end the end."""
        rest = len(feed.rows) - feed.sent
        n = min(rest, self.random.choice((1, 7, 60, 300)))
        header = {"pos": feed.sent, **self._header(feed)}
        if n == rest:
            header["end"] = feed.asked = True
        elif self.random.random() < 0.1:
            header["flush"] = True
        self.socket.send_multipart(data_frames(feed.name, feed.rows[feed.sent:feed.sent + n], **header))
        feed.sent += n

    def blunder(self):
        """Go on as if nothing had happened, on a connection that is made anew under our feet."""
        for feed in self.feeds.values():
            for _ in range(self.random.randrange(4)):
                if not feed.asked:
                    self.send(feed)

    def step(self):
        """Take what has arrived, and send some more; returns whether anything arrived."""
        busy = self.receive()
        if time.monotonic() >= self.hold_until:
            for feed in list(self.feeds.values()):
                if feed.is_open and not feed.asked and feed.sent - feed.have < 1500:
                    self.send(feed)
        return busy

    # --- receiving

    def receive(self):
        busy = False
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return busy
            busy = True
            feed = self.feeds.get(frames[0])
            if feed:
                getattr(self, "_on_" + msgpack.unpackb(frames[1])["type"])(feed, Message(frames))

    def _on_ack(self, feed, ack):
        assert feed.durable <= ack.next <= len(feed.rows), f"{ack}, {feed.durable} was durable"
        assert ack.durable <= ack.next and ack.done <= ack.next, ack
        if not feed.is_open:
            feed.is_open = True
            feed.sent = ack.next
        assert ack.done <= feed.have, f"{ack}, but only {feed.have} hidden states have come"
        feed.durable = max(feed.durable, ack.durable)

    def _on_hidden(self, feed, hidden):
        stop = hidden.pos + len(hidden.rows)
        assert hidden.pos <= feed.have, f"{hidden}, {feed.have} were there: some are missing"
        assert same_bytes(hidden.rows, feed.want[hidden.pos:stop]), f"{hidden} differs"
        feed.repeats += min(stop, feed.have) - hidden.pos
        feed.have = max(feed.have, stop)
        if hidden.end:
            assert feed.have == len(feed.rows), f"{hidden} is no end"
            self._on_end(feed)

    def _on_end(self, feed):
        self.socket.send_multipart([feed.name, pack({"v": 1, "type": "close", "got": feed.have})])
        self.finished.append(self.feeds.pop(feed.name))
        if not self.draining:
            self._begin()

    def _on_error(self, feed, error):
        assert error.code in ("gap", "no_credit", "shutting_down"), error
        self.hold_until = time.monotonic() + 0.02  # those behind it come back too
        if feed.is_open and error.expected is not None:
            assert error.expected >= feed.durable, f"{error}, {feed.durable} was durable"
            feed.sent, feed.asked = error.expected, False
