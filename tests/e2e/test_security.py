"""Keys: who is let in, what each may do, what changes while the daemon runs, and what keeps it from starting."""
import contextlib
import itertools
import os
import re
import stat
import signal
import subprocess
import sys
import time

import msgpack
import numpy as np
import pytest
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from harness import (MAMBA2CTL, MAMBA2D, ROOT, TIMEOUT, Golden, Peer, Receiver, Subscriber, data_frames, meanwhile,
                     pack, same_bytes)
from keyring import Keyring, key, keygen

sys.path.insert(0, os.path.join(ROOT, "protocol", "python"))
from mamba2d import Client, Refused  # noqa: E402

CASE, WINDOW = "seed-46032", 8
MODEL = Golden(CASE).folder


class Secured:
    """A daemon that asks for keys on TCP, and for none on ipc."""

    def __init__(self, daemons, folder, case=CASE, **settings):
        self.keyring = Keyring(folder)
        self.daemon = daemons(case, start=False, window=WINDOW, **settings)
        self.daemon.settings.update({
            "security.secret_key": self.keyring.own, "security.authorized_keys": self.keyring.authorized,
            **{f"sockets.{name}": [f"ipc://{self.daemon.folder}/{file}", "tcp://127.0.0.1:*"]
               for name, file in (("ingest", "in"), ("publish", "out"), ("control", "ctl"), ("subscribe", "sub"))}})
        self.daemon.start()
        self.tcp = self.daemon.ask("status")["sockets"]

    def peer(self, name, rights=None):
        keys = self.keyring.keys(name) if rights is None else self.let(name, rights)
        return Peer(self.daemon, self.tcp["ingest"], keys)

    def let(self, name, rights):
        keys = self.keyring.add(name, rights)
        self.reload()
        return keys

    def reload(self):
        answer = self.daemon.ask("reload")
        assert answer["ok"], answer

    def ask(self, name, cmd, **arguments):
        """A command over TCP with the key of that name."""
        asker = Receiver(self.daemon, zmq.DEALER, self.keyring.keys(name))
        asker.socket.connect(self.tcp["control"])
        asker.socket.send(msgpack.packb({"v": 1, "cmd": cmd, **arguments}))
        assert asker.socket.poll(TIMEOUT * 1000), self.daemon.log()
        answer = msgpack.unpackb(asker.socket.recv())
        asker.close()
        return answer

    def subscriber(self, name, *prefixes):
        return KeyedSubscriber(self, self.keyring.keys(name), prefixes)


class KeyedSubscriber(Receiver):
    def __init__(self, secured, keys, prefixes):
        super().__init__(secured.daemon, zmq.SUB, keys)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 10)
        for prefix in prefixes:
            self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
        self.events = self.socket.get_monitor_socket()
        self.socket.connect(secured.tcp["publish"])

    def close(self):
        self.socket.disable_monitor()
        super().close()

    def event(self, *kinds):
        """Wait for one of these events of the connection; returns which."""
        while True:
            assert self.events.poll(TIMEOUT * 1000), self.daemon.log()
            event = recv_monitor_message(self.events)["event"]
            if event in kinds:
                return event

    def wait(self, stream):
        """Until something of the stream is heard: streams in new epochs are opened and closed for that."""
        peer = Peer(self.daemon)
        deadline = time.monotonic() + TIMEOUT
        epoch = 0
        while not self.socket.poll(20):
            assert time.monotonic() < deadline, self.daemon.log()
            peer.header(stream, type="open", epoch=epoch)
            peer.header(stream, type="close", epoch=epoch)
            epoch += 1
        peer.header(stream, type="flush")
        peer.take(stream, "error")
        peer.close()
        while self.socket.poll(100):
            self.socket.recv_multipart()
        return self


@pytest.fixture
def secured(daemons, tmp_path):
    return Secured(daemons, tmp_path)


@pytest.fixture
def rows(golden):
    return golden(CASE).rows


# --- letting in ------------------------------------------------------------------------------------------------------

AUTH, DONE = zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_SUCCEEDED


def strangers(secured, n, address):
    """Connect with n keys that nobody knows; the event in which each attempt ends."""
    peers = []
    for _ in range(n):
        peer = Receiver(secured.daemon, zmq.DEALER, (*zmq.curve_keypair(), key(secured.keyring.own + ".pub")))
        events = peer.socket.get_monitor_socket(AUTH | DONE)
        peer.socket.connect(address)
        with contextlib.suppress(zmq.Again):  # it may be refused already, and then nothing would ever take this
            peer.socket.send_multipart([b"s", pack({"v": 1, "type": "open"})], zmq.DONTWAIT)
        peers.append((peer, events))
    ends = []
    for peer, events in peers:
        assert events.poll(TIMEOUT * 1000)
        ends.append(recv_monitor_message(events)["event"])
        peer.socket.disable_monitor()
        peer.close()
    return ends


def test_a_thousand_strangers_are_refused_while_others_work(secured, rows):
    peer = secured.peer("producer", "write=p read=p")
    want = Peer(secured.daemon).encode(rows)
    ends, done = [], []

    def work(stop):
        while not stop.is_set() or len(done) < 3:
            stream = b"p%d" % len(done)
            peer.open(stream)
            peer.data(stream, rows, end=True)
            done.append(peer.hidden(stream, 0, len(rows)))
    with meanwhile(work):
        for i in range(20):
            ends += strangers(secured, 50, secured.tcp[("ingest", "control", "subscribe", "publish")[i % 4]]
                              if i % 4 < 2 else secured.tcp["ingest"])
    assert ends == [AUTH] * 1000
    assert len(done) >= 3 and all(same_bytes(hidden, want) for hidden in done)
    status = secured.daemon.ask("status")
    assert status["refused_keys"] == 1000
    line = r"^<4>\S+ refused: the key \S{40}, from 127\.0\.0\.1, is not authorised$"
    assert re.search(line, secured.daemon.log(), re.M)
    assert b"s" not in [s["stream"] for s in secured.daemon.ask("streams")["streams"]]


def test_without_a_subscribe_socket(secured, rows):
    """As the daemon is configured unless somebody asks for one."""
    del secured.daemon.settings["sockets.subscribe"]
    secured.daemon.terminate()
    assert secured.daemon.wait() == 0
    secured.daemon.start()
    secured.tcp = secured.daemon.ask("status")["sockets"]
    peer, stranger = secured.peer("producer", "write read"), Peer(secured.daemon, secured.tcp["ingest"])
    want = Peer(secured.daemon).encode(rows)
    assert same_bytes(peer.encode(rows), want)
    deadline = time.monotonic() + TIMEOUT
    while not told_strangers(secured)[0]:
        assert time.monotonic() < deadline, secured.daemon.log()
    stranger.close()


def told_strangers(secured):
    """How many without a key, and how many with a wrong one for the daemon's, its log tells of."""
    line = "refused: ([0-9]+) connections over TCP that showed no key, ([0-9]+) with another key for ours than "
    told = re.findall(line + re.escape(key(secured.keyring.own + ".pub").decode()), secured.daemon.log())
    return [sum(int(pair[i]) for pair in told) for i in range(2)]


def test_nobody_without_keys_comes_in(secured):
    """Neither in plain, nor with an authorised key for another daemon's; nothing is answered, and it is logged."""
    secured.keyring.add("producer", "write read")
    secured.reload()
    public, secret, _ = secured.keyring.keys("producer")
    for keys in (None, (public, secret, zmq.curve_keypair()[0])):
        peer = Peer(secured.daemon, secured.tcp["ingest"], keys)
        peer.header(b"s", type="open")
        assert peer.receive(1) is None
        peer.close()
    assert secured.daemon.ask("status")["streams"] == 0
    keyless = mistaken = 0
    deadline = time.monotonic() + TIMEOUT
    while not (keyless and mistaken):
        assert time.monotonic() < deadline, secured.daemon.log()
        keyless, mistaken = told_strangers(secured)
    assert secured.daemon.ask("status")["refused_keys"] >= keyless + mistaken


def test_no_key_is_asked_for_on_ipc(secured, rows):
    peer, subscriber = Peer(secured.daemon), Subscriber(secured.daemon, b"s")
    peer.open(b"s")
    peer.data(b"s", rows, end=True)
    assert same_bytes(subscriber.hidden(b"s", 0, len(rows)), peer.hidden(b"s", 0, len(rows)))


def test_a_routing_id_of_ones_own_is_denied(secured):
    """It might be another peer's, whose replies would go astray."""
    keys = secured.let("producer", "write read")
    peer = Receiver(secured.daemon, zmq.DEALER, keys)
    peer.socket.setsockopt(zmq.IDENTITY, b"me")
    peer.socket.connect(secured.tcp["ingest"])
    peer.socket.send_multipart([b"s", pack({"v": 1, "type": "open"})])
    message = peer.take(b"s", "error")
    assert message.code == "denied" and "routing id" in message.message


# --- rights ----------------------------------------------------------------------------------------------------------

def test_write_by_prefix(secured, rows):
    peer = secured.peer("gate", "write=gate-7/ write=0xff00 read=gate-7/")
    for stream in (b"gate-7/a", b"gate-7/"):
        peer.open(stream)
        peer.data(stream, rows, end=True)
        peer.hidden(stream, 0, len(rows))
    peer.open(b"\xff\x00\x01", reply=False)
    for stream in (b"gate-7", b"gate-70", b"x", b"\xff"):
        for kind in ("open", "flush", "close"):
            peer.header(stream, type=kind)
            peer.refusal(stream, "denied")
        peer.data(stream, rows)
        peer.refusal(stream, "denied")
    assert [s["stream"] for s in secured.daemon.ask("streams")["streams"]] == [b"\xff\x00\x01"]


def test_replies_need_the_right_to_read(secured, rows):
    peer = secured.peer("gate", "write=g read=g-read")
    peer.header(b"g", type="open", reply=True)
    assert "read" in peer.refusal(b"g", "denied").message
    peer.open(b"g", reply=False)
    peer.data(b"g", rows, end=True)
    peer.ack(b"g", done=len(rows))
    assert not [m for m in peer.inbox if m.type == "hidden"]
    peer.open(b"g-reader")


def test_what_is_denied_is_not_told(secured, rows):
    """Not even whether a stream is there, or what it expects."""
    owner, other = Peer(secured.daemon), secured.peer("other", "write=other")
    owner.open(b"secret")
    owner.data(b"secret", rows[:5])
    owner.ack(b"secret", next=5)
    for stream in (b"secret", b"nothing"):
        other.header(stream, type="flush")
        other.data(stream, rows, pos=77)
        answers = [other.refusal(stream, "denied").header for _ in range(2)]
        assert all(set(a) == {"v", "type", "code", "message"} for a in answers), answers


READERS = {
    "its own": ("read=a/", [b"a/"], [b"a/1", b"a/2"]),
    "within its own": ("read=a/", [b"a/1"], [b"a/1"]),
    "everything, of which it may read a part": ("read=a/ read=b/1", [b""], [b"a/1", b"a/2", b"b/1"]),
    "another one's": ("read=a/", [b"b/"], []),
    "both": ("read=a/", [b"a/2", b"b/"], [b"a/2"]),
    "nothing allowed": ("write", [b""], []),
    "all": ("read", [b""], [b"a/1", b"a/2", b"b/1", b"b/2"]),
}


def test_read_by_prefix(secured, rows):
    subscribers = {}
    for i, (what, (rights, prefixes, _)) in enumerate(READERS.items()):
        secured.keyring.add(f"r{i}", rights + " read=probe")
    secured.reload()
    for i, (what, (rights, prefixes, _)) in enumerate(READERS.items()):
        subscribers[what] = secured.subscriber(f"r{i}", b"probe", *prefixes).wait(b"probe%d" % i)
    peer = Peer(secured.daemon)
    streams = (b"a/1", b"a/2", b"b/1", b"b/2")
    for stream in streams + (b"probe", ):
        peer.open(stream)
        peer.data(stream, rows, end=True)
        peer.hidden(stream, 0, len(rows))
    for what, (_, _, want) in READERS.items():
        subscriber = subscribers[what]
        subscriber.hidden(b"probe", 0, len(rows))  # behind all the others
        seen = {m.stream for m in subscriber.inbox if not m.stream.startswith(b"probe")}
        assert seen == set(want), what


def test_control_by_prefix(secured):
    rights = {"all": "control", "some": "control=a/", "none": "write read"}
    for name, text in rights.items():
        secured.keyring.add(name, text)
    secured.reload()
    peer = Peer(secured.daemon)
    for stream in (b"a/1", b"a/2", b"b/1"):
        peer.open(stream)

    def codes(cmd, **arguments):
        return [secured.ask(name, cmd, **arguments).get("code", "ok") for name in rights]

    assert codes("status") == ["ok", "ok", "denied"]
    assert [secured.ask(name, "streams")["total"] for name in ("all", "some")] == [3, 2]
    assert secured.ask("none", "streams")["code"] == "denied"
    assert codes("reset", stream=b"a/1") == ["ok", "ok", "denied"]
    assert codes("reset", stream=b"b/1") == ["ok", "denied", "denied"]
    assert codes("close", stream=b"none") == ["closed", "denied", "denied"]
    assert codes("fork", stream=b"a/1", to=b"b/2") == ["ok", "denied", "denied"]
    assert codes("fork", stream=b"b/1", to=b"a/3") == ["ok", "denied", "denied"]
    assert codes("export", stream=b"a/1") == ["ok", "ok", "denied"]
    state = secured.ask("all", "export", stream=b"a/1")["state"]
    assert codes("import", state=state)[1:] == ["denied", "denied"]
    assert codes("import", state=state, stream=b"a/9") == ["ok", "ok", "denied"]
    assert codes("snapshot")[1:] == ["denied", "denied"]
    assert codes("reload") == ["ok", "denied", "denied"]
    assert [secured.ask(name, "drain")["code"] for name in ("some", "none")] == ["denied", "denied"]
    assert secured.daemon.ask("status")["state"] == "serving"


def test_publishers_show_keys_as_well(secured, rows):
    """The daemon reads a PUB whose key may write; what is denied is counted, as publishers cannot be told."""
    keys = secured.let("sensor", "write=ok")
    consumer = Subscriber(secured.daemon, b"")
    publisher = Receiver(secured.daemon, zmq.XPUB, keys)
    publisher.socket.connect(secured.tcp["subscribe"])
    assert publisher.socket.poll(TIMEOUT * 1000)
    publisher.socket.recv()
    for stream in (b"no", b"ok"):
        publisher.socket.send_multipart(data_frames(stream, rows, end=True))
    want = Peer(secured.daemon).encode(rows)
    assert same_bytes(consumer.hidden(b"ok", 0, len(rows)), want)
    assert not [m for m in consumer.inbox if m.stream == b"no"]
    assert secured.daemon.ask("status")["refused"]["denied"] == 1


# --- limits ----------------------------------------------------------------------------------------------------------

def test_streams_of_one_key(daemons, tmp_path, rows):
    """Over all its connections, also those that are gone; taking over counts as well, and closing gives back."""
    secured = Secured(daemons, tmp_path, **{"limits.peer_streams": 3})
    first, other = secured.peer("a", "write read"), secured.peer("b", "write read")
    first.open(b"1")
    first.open(b"2")
    first.close()
    second = secured.peer("a")
    second.open(b"3")
    for kind in ("open", "data"):
        second.frames(*(data_frames(b"4", rows) if kind == "data" else [b"4", pack({"v": 1, "type": "open"})]))
        assert "limits.peer_streams" in second.refusal(b"4", "too_many_streams").message
    other.open(b"4")
    second.header(b"4", type="open")
    second.refusal(b"4", "too_many_streams")
    second.open(b"1")
    second.data(b"1", rows, end=True)
    second.hidden(b"1", 0, len(rows))
    second.open(b"4")
    other.data(b"4", rows)
    other.refusal(b"4", "denied")
    other.open(b"5")
    assert Peer(secured.daemon).open(b"6"), "who needs no key has a limit of its own"


def test_streams_of_one_connection(daemons):
    daemon = daemons(CASE, window=WINDOW, **{"limits.peer_streams": 2})
    one, two = Peer(daemon), Peer(daemon)
    for peer, streams in ((one, (b"1", b"2")), (two, (b"3", b"4"))):
        for stream in streams:
            peer.open(stream)
        peer.header(b"5", type="open")
        peer.refusal(b"5", "too_many_streams")
    one.header(b"1", type="close")
    one.ack(b"1")
    one.open(b"5")


def test_messages_in_a_second(daemons, tmp_path, rows):
    """Who sends too fast is refused and loses nothing by it; others do not notice."""
    secured = Secured(daemons, tmp_path, **{"limits.peer_messages": 20})
    hurried, calm = secured.peer("hurried", "write read"), secured.peer("calm", "write read")
    want = Peer(secured.daemon).encode(rows)
    hurried.open(b"h")
    for i in range(60):
        hurried.data(b"h", rows[i:i + 1], pos=i)
    refusal = hurried.take(b"h", "error")
    assert refusal.code == "no_credit" and "20 messages in a second" in refusal.message and refusal.expected <= 20
    assert same_bytes(calm.encode(rows), want)
    with Client(secured.tcp["ingest"], key=secured.keyring.path("hurried"), server_key=secured.keyring.own + ".pub",
                message_bytes=rows[:1].nbytes) as client:
        assert same_bytes(client.encode("c", rows[:45]), want[:45])
    assert secured.daemon.ask("status")["refused"]["no_credit"] > 0


# --- changing while running ------------------------------------------------------------------------------------------

def test_a_key_that_is_added_comes_in_and_one_that_is_removed_is_cut_off(secured, rows):
    ends = strangers(secured, 1, secured.tcp["ingest"])
    stays, goes = secured.peer("stays", "write read"), secured.peer("goes", "write read")
    for peer, stream in ((stays, b"stays"), (goes, b"goes")):
        peer.open(stream)
        peer.data(stream, rows[:5])
        peer.ack(stream, next=5)
    events = goes.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | AUTH)
    secured.keyring.remove("goes")
    secured.reload()
    kinds = []
    while kinds[-1:] != [AUTH]:
        assert events.poll(TIMEOUT * 1000), (kinds, secured.daemon.log())
        kinds.append(recv_monitor_message(events)["event"])
    assert ends == [AUTH] and kinds[0] == zmq.EVENT_DISCONNECTED
    stays.data(b"stays", rows[5:], end=True)
    assert same_bytes(stays.hidden(b"stays", 0, len(rows)), Peer(secured.daemon).encode(rows))
    assert {s["stream"]: s["next"] for s in secured.daemon.ask("streams")["streams"]} == {b"goes": 5}
    goes = secured.peer("goes", "write read")
    assert goes.open(b"goes").next == 5


def test_what_is_under_way_when_a_key_is_removed_is_not_taken(secured, rows):
    goes = secured.peer("goes", "write read")
    goes.open(b"goes")
    secured.keyring.remove("goes")
    control = Receiver(secured.daemon, zmq.DEALER)
    control.socket.connect(secured.daemon.control)
    secured.daemon.terminate(signal.SIGSTOP)  # all of it comes at once
    for i in range(5000):
        goes.data(b"goes", rows[:1], pos=i)
    control.socket.send(pack({"v": 1, "cmd": "reload"}))
    secured.daemon.terminate(signal.SIGCONT)
    assert control.socket.poll(TIMEOUT * 1000) and msgpack.unpackb(control.socket.recv())["ok"]
    reached = secured.daemon.ask("streams")["streams"][0]["next"]
    Peer(secured.daemon).encode(rows)
    assert secured.daemon.ask("streams", prefix=b"goes")["streams"][0]["next"] == reached


def test_replies_end_with_the_right_to_them(secured, rows):
    peer = secured.peer("gate", "write read")
    peer.open(b"s")
    peer.data(b"s", rows[:5])
    peer.ack(b"s", next=5)
    secured.let("gate", "write")
    secured.daemon.ask("close", stream=b"s")
    assert peer.take(b"s", "ack", "hidden").type == "ack"
    assert peer.silent()


def test_a_feeder_without_the_right_to_write_feeds_no_more(secured, rows):
    peer = secured.peer("gate", "write read")
    peer.open(b"s")
    secured.let("gate", "read")
    peer.data(b"s", rows)
    peer.refusal(b"s", "denied")
    other = Peer(secured.daemon)
    other.data(b"s", rows, end=True)
    other.ack(b"s", done=len(rows))


def test_subscribers_follow_their_rights(secured, rows):
    """One whose key is removed or whose rights shrink sees nothing more of it; the others do not notice."""
    for name in ("stays", "shrinks", "goes"):
        secured.keyring.add(name, "read")
    secured.reload()
    subscribers = {name: secured.subscriber(name, b"").wait(b"probe-" + name.encode())
                   for name in ("stays", "shrinks", "goes")}
    events = subscribers["goes"]
    secured.keyring.add("shrinks", "read=b")
    secured.keyring.remove("goes")
    secured.reload()
    peer = Peer(secured.daemon)
    peer.open(b"a")
    peer.data(b"a", rows, end=True)
    hidden = peer.hidden(b"a", 0, len(rows))
    assert same_bytes(subscribers["stays"].hidden(b"a", 0, len(rows)), hidden)
    events.event(zmq.EVENT_DISCONNECTED)
    assert events.event(AUTH, DONE) == AUTH
    subscribers["shrinks"].wait(b"b-probe")
    peer.open(b"a2")
    peer.data(b"a2", rows, end=True)
    subscribers["stays"].hidden(b"a2", 0, len(rows))
    for name in ("shrinks", "goes"):
        assert not [m for m in subscribers[name].inbox if m.stream in (b"a", b"a2")]
        assert subscribers[name].silent(), subscribers[name].inbox
    assert secured.daemon.ask("status")["dropped_messages"] == 0


def test_a_reload_says_whether_keys_or_their_rights_change(secured):
    for change in (lambda: secured.keyring.add("one", "write"), lambda: secured.keyring.add("one", "write=a"),
                   lambda: secured.keyring.remove("one")):
        change()
        assert secured.daemon.ask("reload")["changed"] == ["security.authorized_keys"]
        assert secured.daemon.ask("reload")["changed"] == []


def test_a_mistake_in_the_file_of_keys_changes_nothing(secured, rows):
    peer = secured.peer("gate", "write read")
    with open(secured.keyring.authorized, "a") as file:
        file.write("other nonsense write\n")
    answer = secured.daemon.ask("reload")
    assert not answer["ok"]
    assert "security.authorized_keys" in answer["message"] and "authorized_keys:4: \"nonsense\"" in answer["message"]
    peer.open(b"s")
    peer.data(b"s", rows, end=True)
    peer.hidden(b"s", 0, len(rows))


# --- subscribers that play tricks ------------------------------------------------------------------------------------

def test_subscribers_that_vanish_at_once(secured, rows):
    """Hundreds of them subscribe and are gone before anybody looks, while the daemon publishes."""
    secured.keyring.add("restless", "read")
    secured.keyring.add("steady", "read=s")
    secured.reload()
    steady = secured.subscriber("steady", b"s").wait(b"s-probe")
    peer = Peer(secured.daemon)
    want = peer.encode(rows)

    def vanish(stop):
        with zmq.Context() as context:
            while not stop.is_set():
                many = []
                for i in range(20):
                    socket = context.socket(zmq.SUB)
                    socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = secured.keyring.keys(
                        "restless")
                    socket.linger = 0
                    for k in range(10):
                        socket.subscribe(b"s%d" % k)
                    socket.connect(secured.tcp["publish"])
                    many.append(socket)
                time.sleep(0.02)
                for socket in many:
                    socket.close()
    with meanwhile(vanish), meanwhile(vanish):
        for i in range(60):
            stream = b"s%d" % i
            peer.open(stream)
            peer.data(stream, rows, end=True)
            assert same_bytes(peer.hidden(stream, 0, len(rows)), want)
            assert same_bytes(steady.hidden(stream, 0, len(rows)), want)


def test_messages_that_are_no_subscriptions_mislead_nobody(secured, rows):
    """They put ZeroMQ's own book of subscriptions out of step: one peer must not get what another asked for."""
    secured.keyring.add("reader", "read=secret")
    secured.keyring.add("liar", "read=public")
    secured.reload()
    liar = Receiver(secured.daemon, zmq.XSUB, secured.keyring.keys("liar"))
    liar.socket.setsockopt(zmq.RECONNECT_IVL, 1)
    liar.socket.connect(secured.tcp["publish"])
    peer = Peer(secured.daemon)
    for i in range(30):
        for _ in range(5):
            liar.socket.send(b"\x05nonsense")
            liar.socket.send(b"")
            liar.socket.send(b"\x01public")
        reader = secured.subscriber("reader", b"secret")
        for _ in range(5):
            liar.socket.send(b"\x01public")
        reader.event(DONE)
        stream = b"secret%d" % i
        peer.open(stream)
        peer.data(stream, rows[:8], end=True)
        peer.hidden(stream, 0, 8)
        reader.close()
    reader = secured.subscriber("reader", b"secret").wait(b"secret-probe")
    while liar.socket.poll(100):
        assert liar.socket.recv_multipart()[0].startswith(b"public")


# --- programs --------------------------------------------------------------------------------------------------------

def ctl(*arguments):
    return subprocess.run([MAMBA2CTL, *arguments], capture_output=True, text=True, timeout=TIMEOUT)


def test_mamba2ctl_shows_keys(secured, rows, tmp_path):
    secured.let("ops", "control write read")
    ring = secured.keyring
    keys = ["--key", ring.path("ops"), "--server-key", ring.own + ".pub"]
    assert ctl("status", "--control", secured.tcp["control"], *keys).returncode == 0
    np.save(tmp_path / "rows.npy", rows)
    sent = ctl("send", "--ingest", secured.tcp["ingest"], *keys, "--end", "s", str(tmp_path / "rows.npy"))
    assert (sent.returncode, sent.stderr) == (0, "")
    recv = ("recv", "--publish", secured.tcp["publish"], "--count", "1", *keys, "r")
    with subprocess.Popen([MAMBA2CTL, *recv], stdout=subprocess.PIPE, text=True) as process:
        deadline, peer, epochs = time.monotonic() + TIMEOUT, Peer(secured.daemon), itertools.count()
        while process.poll() is None:  # it may not have subscribed yet
            assert time.monotonic() < deadline
            epoch = next(epochs)
            peer.open(b"r", epoch=epoch)
            peer.data(b"r", rows, epoch=epoch, end=True)
            peer.hidden(b"r", 0, len(rows), epoch=epoch)
        assert process.returncode == 0 and "rows" in process.stdout.readline()
    keygen(ring.path("stranger"))
    keys[1] = ring.path("stranger")
    refused = ctl("status", "--control", secured.tcp["control"], *keys)
    assert refused.returncode == 4 and "does not let this key in" in refused.stderr
    for refused in (ctl("send", "--ingest", secured.tcp["ingest"], *keys, "s", str(tmp_path / "rows.npy")),
                    ctl("recv", "--publish", secured.tcp["publish"], *keys)):
        assert refused.returncode == 4 and "does not let this key in" in refused.stderr, refused
    for wrong, message in ((["--key", keys[1]], "go together"),
                           (["--key", ring.own + ".pub", "--server-key", ring.own + ".pub"], "a secret key is for"),
                           (["--key", ring.own, "--server-key", ring.own],
                            "holds a secret-key, expected a public-key")):
        result = ctl("status", "--control", secured.tcp["control"], *wrong)
        assert result.returncode and message in result.stderr, result.stderr


def test_keygen(tmp_path):
    path = str(tmp_path / "key")
    made = ctl("keygen", path)
    assert made.returncode == 0 and key(path + ".pub").decode() in made.stdout
    assert zmq.curve_public(key(path)) == key(path + ".pub")
    assert [stat.S_IMODE(os.stat(p).st_mode) for p in (path, path + ".pub")] == [0o600, 0o644]
    before = key(path)
    again = ctl("keygen", path)
    assert again.returncode == 1 and "File exists" in again.stderr and key(path) == before
    assert ctl("keygen").returncode == 2


def test_python_client_shows_keys(secured, rows):
    secured.let("me", "control write=mine read=mine")
    ring = secured.keyring

    def client(name, **more):
        return Client(secured.tcp["ingest"], publish=secured.tcp["publish"], control=secured.tcp["control"],
                      key=ring.path(name), server_key=ring.own + ".pub", timeout=TIMEOUT, **more)

    with client("me") as c:
        hidden = c.encode("mine", rows)
        assert same_bytes(hidden, Peer(secured.daemon).encode(rows))
        assert c.control("status")["ok"]
        with pytest.raises(Refused, match="denied"):
            c.encode("yours", rows)
        next(iter(c.hidden("mine", timeout=0)), None)
        ring.remove("me")
        secured.reload()
        with pytest.raises(Refused, match="does not let this key in"):
            c.encode("mine", rows)
        for call in (lambda: c.control("status"), lambda: c.hidden("mine")):
            with pytest.raises(Refused, match="does not let this key in"):
                call()
    with pytest.raises(ValueError, match="expected one line"):
        Client("tcp://127.0.0.1:1", key=ring.own + ".pub", server_key=ring.own + ".pub")


@pytest.mark.parametrize("keys", ["none", "another server's"])
def test_python_client_that_cannot_come_in_does_not_hurry(secured, rows, keys):
    """Each try costs the daemon a handshake."""
    ring = secured.keyring
    shown = {"key": ring.path("me"), "server_key": ring.path("me") + ".pub"} if keys != "none" else {}
    secured.let("me", "write=mine")
    with Client(secured.tcp["ingest"], timeout=3, **shown) as c:
        with pytest.raises(TimeoutError, match="another key, or keys at all"):
            c.encode("mine", rows)
    assert 2 < secured.daemon.ask("status")["refused_keys"] < 30


# --- what keeps it from starting -------------------------------------------------------------------------------------

def start(*settings, check=True):
    """Run mamba2d --check, or mamba2d, which must not start; returns what it says."""
    arguments = [word for setting in settings for word in ("-s", setting)]
    result = subprocess.run([MAMBA2D, *(["--check"] if check else []), "-s", "model=" + MODEL, *arguments],
                            capture_output=True, text=True, timeout=TIMEOUT)
    return result.returncode, result.stderr


OPEN = ["tcp://0.0.0.0:5701", "tcp://*:5701", "'tcp://[::]:5701'", "tcp://eth0:5701", "tcp://192.168.1.2:5701",
        "tcp://127.0.0.1.example.org:5701", '">tcp://sensor:5700"', "'tcp://localhost.example.org:1'",
        "ipc://@abstract"]


@pytest.mark.parametrize("key_", ["ingest", "subscribe", "publish", "control"])
@pytest.mark.parametrize("address", OPEN)
def test_open_sockets_without_keys(address, key_, tmp_path):
    status, text = start(f"sockets.{key_}={address}")
    assert status == 1 and f"sockets.{key_}: " in text and "write security.insecure: true" in text
    assert start(f"sockets.{key_}={address}", "security.insecure=true")[0] == 0
    keygen(str(tmp_path / "key"))
    (tmp_path / "keys").write_text("")
    keyed = (f"security.secret_key={tmp_path}/key", f"security.authorized_keys={tmp_path}/keys")
    assert start(f"sockets.{key_}={address}", *keyed)[0] == (1 if "ipc" in address else 0)


def test_an_open_socket_keeps_the_daemon_itself_from_starting():
    status, text = start("sockets.ingest=tcp://0.0.0.0:5701", check=False)
    assert status == 1 and "is not on loopback: set security.secret_key" in text


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:*", "tcp://127.9.9.9:1", "'tcp://[::1]:1'", "tcp://localhost:1",
                                     '">tcp://127.0.0.1:1"', '"@tcp://127.0.0.1:1"', "ipc:///tmp/x", "ipc://*"])
def test_closed_sockets_need_none(address):
    assert start(f"sockets.ingest={address}")[0] == 0


def test_key_files_that_are_wrong_are_named(tmp_path):
    own, keys = str(tmp_path / "own"), tmp_path / "keys"
    keygen(own)
    keys.write_text("")

    def text(secret=own, authorized=str(keys)):
        status, text = start(f"security.secret_key={secret}", f"security.authorized_keys={authorized}")
        assert status == 1
        return text

    assert f"security.secret_key: {own}x: No such file" in text(secret=own + "x")
    assert f"security.authorized_keys: {keys}x: No such file" in text(authorized=f"{keys}x")
    os.chmod(own + ".pub", 0o600)
    assert f"{own}.pub: holds a public-key, expected a secret-key" in text(secret=own + ".pub")
    os.chmod(own, 0o640)
    assert f"{own}: mode 0640: a secret key is for its owner alone" in text()
    os.chmod(own, 0o600)
    garbage = tmp_path / "garbage"
    garbage.touch(0o600)
    for content in ("", "secret-key", "secret-key short", "hello\n" * 3, "secret-key " + "\"" * 40, "\0" * 1000):
        garbage.write_text(content)
        assert f"{garbage}: no key file: expected one line" in text(secret=str(garbage))
    good = key(own + ".pub").decode()
    for line, message in {"name": "no key", f"name {good[:-1]} write": "no key", f"name {good} sing": "expected write",
                          f"name {good} write=": "", f"name {good} write=0xzz": "is not hex",
                          f"a {good} write\na {zmq.curve_keypair()[0].decode()}": "this name has a key already",
                          f"a {good} write\nb {good} read": "this key stands here twice",
                          f"a {good} " + "write=x " * 2000: "too long a line"}.items():
        keys.write_text("# fine\n\n" + line + "\n")
        assert f"security.authorized_keys: {keys}:" in text() and message in text(), line
    keys.write_text("".join(f"name-{i} {z85.encode(os.urandom(32)).decode()}\n" for i in range(10_001)))
    assert f"{keys}:10001: \"name-10000\": one key too many, expected up to 10000" in text()
    assert "security.authorized_keys: expected the file" in start(f"security.secret_key={own}")[1]
    assert "security.secret_key: expected a key file" in start(f"security.authorized_keys={keys}")[1]


@pytest.mark.parametrize("mode", [None, "0660", "0606", "0200"])
def test_the_mode_of_socket_files(daemons, mode):
    daemon = daemons(CASE, window=WINDOW, **({"security.ipc_mode": mode} if mode else {}))
    for name in ("in", "out", "ctl"):
        assert stat.S_IMODE(os.stat(f"{daemon.folder}/{name}").st_mode) == int(mode or "0600", 8)


@pytest.mark.parametrize("mode", ["0800", "rw", "07777", "-1", ""])
def test_modes_that_are_none(mode):
    status, text = start(f"security.ipc_mode='{mode}'")
    assert status == 1 and "is no file mode" in text
