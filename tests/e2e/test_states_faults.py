"""A disk that fails: service goes on, `durable` stops, it is loud, and it recovers; nothing is lost and nothing torn.

MAMBA2D_FAULTS=all tries every system call with every error; MAMBA2D_KILLS and MAMBA2D_SEED: test_states_killed.py.
"""
import errno
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from faults import NAMES, REMOVING, WRITING, Faults, SmallDisk
from harness import Peer, Subscriber, TIMEOUT, same_bytes
from keeper import Feed, Keeper
from test_states_killed import finish, run

CASE, WINDOW = "seed-46032", 8
ALL = os.environ.get("MAMBA2D_FAULTS") == "all"
KILLS = int(os.environ.get("MAMBA2D_KILLS", 15))
FOR_GOOD = 1 << 30


@pytest.fixture
def daemon(daemons, tmp_path):
    """A daemon that keeps states and is not started yet."""
    return daemons(CASE, start=False, window=WINDOW, **{"state.dir": str(tmp_path / "states"), "state.interval": 60})


@pytest.fixture
def faults(daemon, tmp_path):
    return Faults(daemon, tmp_path)


def states(daemon):
    return daemon.ask("status")["states"]


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def errors_logged(daemon):
    return [line for line in daemon.log().splitlines() if line.startswith("<3>")]


class Producer:
    """Feeds one stream in one go after the other, and checks what comes back."""

    def __init__(self, daemon, name, rows, want):
        self.daemon, self.name, self.rows, self.want = daemon, name, rows, want
        self.have = self.durable = 0
        self.connect()

    def connect(self):
        """Open the stream; send again what is to come again."""
        self.peer = Peer(self.daemon)
        have = self.have
        self.have = self.peer.open(self.name, **{"from": have}).next
        assert self.durable <= self.have <= have
        if self.have < have:
            self.encode(have)

    def encode(self, stop):
        """Send the rows up to stop, have them emitted, and confirm that."""
        self.peer.data(self.name, self.rows[self.have:stop], pos=self.have, flush=True)
        assert same_bytes(self.peer.hidden(self.name, self.have, stop), self.want[self.have:stop])
        self.peer.header(self.name, type="flush", got=stop)
        self.have = stop

    def save(self):
        """Ask for a snapshot; returns the answer."""
        time.sleep(0.002)  # what changes from now on is younger
        return self.daemon.ask("snapshot", stream=self.name)

    def told(self):
        """The highest `durable` that was told until now."""
        self.peer.header(b"nobody", type="flush")
        self.peer.refusal(b"nobody", "closed")
        acks = [m for m in self.peer.inbox if m.type == "ack"]
        self.peer.inbox = [m for m in self.peer.inbox if m.type != "ack"]
        self.durable = max([self.durable, *(ack.durable for ack in acks)])
        return self.durable

    def close(self):
        self.peer.header(self.name, type="close", got=self.have)
        self.peer.close()


def start_saved(daemon, name, rows, want):
    """A daemon, and the producer of a stream of 20 rows that is on disk."""
    daemon.start()
    producer = Producer(daemon, name, rows, want)
    producer.encode(20)
    assert producer.save()["ok"]
    return producer


def begin_anew(daemon, name, rows):
    """The next life of a stream, of 45 rows, without replies."""
    peer = Peer(daemon)
    assert peer.open(name, reply=False).next == 0
    peer.data(name, rows[:45], flush=True)
    peer.ack(name, done=45)
    return peer


def assert_kept(daemon, name, **fields):
    """After a kill the stream goes on behind 45 rows."""
    daemon.kill()
    daemon.start()
    assert Peer(daemon).open(name, **fields).next == 45


# --- one system call after the other ---------------------------------------------------------------------------------

FAILURES = {"EIO once": (errno.EIO, 1), "ENOSPC for good": (errno.ENOSPC, FOR_GOOD)}
if ALL:
    FAILURES.update({"ENOSPC once": (errno.ENOSPC, 1), "EIO for good": (errno.EIO, FOR_GOOD)})


@pytest.mark.parametrize("end", ["kill", "heal"])
@pytest.mark.parametrize("error, n_failing", FAILURES.values(), ids=FAILURES)
def test_each_call_of_a_save_fails_in_turn(daemon, faults, rows, want, error, n_failing, end):
    daemon.start()
    failed = ""
    for n in itertools.count():
        producer = Producer(daemon, b"faulty-%d" % n, rows, want)
        for stop in (20, 45):
            producer.encode(stop)
            assert producer.save()["ok"]
        wait_until(lambda: producer.told() == 45)
        producer.encode(70)
        faults.arm(WRITING + REMOVING, n, n_failing, error)
        answer = producer.save()
        if not faults.happened():
            break
        call = faults.calls()[n]
        needed = call in WRITING or n == 0  # not what removes the state before
        failed += call
        producer.encode(95)  # goes on in any case
        if needed:
            assert not answer["ok"] and os.strerror(error) in answer["message"]
            assert states(daemon)["error"] == answer["message"] and answer["message"] in errors_logged(daemon)[-1]
            assert producer.told() == 45
        else:
            assert answer["ok"] and states(daemon)["error"] == ""
            wait_until(lambda: producer.told() == 70)
        if end == "kill":
            daemon.kill()
            faults.heal()
            daemon.start()
            producer.connect()
        else:
            faults.heal()
            if needed:
                wait_until(lambda: producer.told() == 95)
            assert states(daemon)["error"] == ""
        assert states(daemon)["damaged"] == 0
        producer.close()
    names = " ".join(NAMES[call] for call in failed)
    print(names)
    assert names == "unlinkat openat write write write fdatasync close renameat fsync unlinkat"


def test_short_writes(daemon, faults, rows, want):
    daemon.start()
    producer = Producer(daemon, b"short", rows, want)
    faults.arm("w", 0, FOR_GOOD, 0)
    for stop in (20, 45, 95):
        producer.encode(stop)
        assert producer.save()["ok"]
    assert len(faults.calls()) > 3 * 10
    daemon.kill()
    faults.heal()
    daemon.start()
    producer.connect()
    assert producer.have == 95 and daemon.ask("status")["rows_in"] == 0


def test_interrupted_writes(daemon, faults, rows, want):
    daemon.start()
    producer = Producer(daemon, b"interrupted", rows, want)
    producer.encode(20)
    faults.arm("w", 0, 5, errno.EINTR)
    assert producer.save()["ok"] and faults.happened()
    daemon.terminate()
    assert daemon.wait() == 0
    faults.heal()
    daemon.start()
    producer.connect()
    assert producer.have == 20 and states(daemon)["damaged"] == 0


@pytest.mark.parametrize("reply", [True, False], ids=["mark", "remove"])
def test_a_closed_stream_whose_states_cannot_be_removed(daemon, faults, rows, reply, tmp_path):
    daemon.start()
    peer = Peer(daemon)
    calls = "os" if reply else "uus"
    for n in range(len(calls)):
        name = b"closed-%d" % n
        peer.open(name, reply=reply)
        peer.data(name, rows[:20], flush=True)
        peer.ack(name, done=20)
        assert daemon.ask("snapshot", stream=name)["ok"]
        faults.arm("".join(set(calls)), n, FOR_GOOD)
        peer.header(name, type="close")
        assert os.strerror(errno.EIO) in wait_for_error(daemon) and faults.happened()
        assert peer.open(b"other", reply=False).next == 0, "others are served"
        faults.heal()
        wait_until(lambda: states(daemon)["error"] == "")
    left = sorted(name.split(".")[-1] for name in os.listdir(tmp_path / "states"))
    assert left == (["closed", "closed", "safetensors", "safetensors"] if reply else [])


def test_a_closed_stream_that_is_opened_again_whose_mark_cannot_be_removed(daemon, faults, rows, want):
    """As long as it is there nothing counts as durable that the next start would take for a closed stream's."""
    producer = start_saved(daemon, b"again", rows, want)
    producer.peer.header(b"again", type="close")
    wait_until(lambda: any(name.endswith(".closed") for name in os.listdir(daemon.settings["state.dir"])))
    faults.arm(REMOVING, 0, FOR_GOOD)
    producer.connect()
    producer.encode(45)
    assert not producer.save()["ok"] and producer.told() == 0
    faults.heal()
    wait_until(lambda: producer.told() == 45)
    assert_kept(daemon, b"again")


@pytest.mark.parametrize("reply", [True, False], ids=["reply", "publish"])
def test_what_has_ended_is_gone(daemon, faults, rows, want, reply):
    """A kill right behind the end does not bring the stream back: the end waits for a slow disk."""
    peer = start_saved(daemon, b"gone", rows, want).peer
    peer.open(b"gone", reply=reply)
    faults.arm("ou", 0, FOR_GOOD, -1)
    threading.Timer(0.3, faults.heal).start()
    peer.data(b"gone", rows[20:45], pos=20, end=True)
    if reply:
        assert same_bytes(peer.hidden(b"gone", 20, 45), want[20:45])
    else:
        peer.ack(b"gone", done=45)
    daemon.kill()
    daemon.start()
    assert Peer(daemon).open(b"gone", reply=reply).next == 0


def test_what_has_not_ended_is_there(daemon, faults, rows, want):
    """Without reply it is the ack that tells of the end: a kill before that loses nothing of what was durable."""
    peer = start_saved(daemon, b"there", rows, want).peer
    consumer = Subscriber(daemon, b"there")
    peer.open(b"there", reply=False)
    faults.arm("ou", 0, FOR_GOOD, -1)
    peer.data(b"there", rows[20:45], pos=20, end=True)
    assert same_bytes(consumer.hidden(b"there", 20, 45), want[20:45])
    peer.header(b"nobody", type="flush")
    peer.refusal(b"nobody", "closed")
    assert all(ack.done < 45 for ack in peer.inbox if ack.type == "ack" and ack.stream == b"there")
    daemon.kill()
    faults.heal()
    daemon.start()
    assert Peer(daemon).open(b"there", reply=False).next == 20


def test_what_was_before_a_new_beginning_is_gone(daemon, faults, rows, want):
    """A kill right behind the first hidden states of a stream's next life does not bring back the one before."""
    start_saved(daemon, b"anew", rows, want).close()
    faults.arm("u", 0, FOR_GOOD, -1)
    peer = Peer(daemon)
    assert peer.open(b"anew", reply=True).next == 0
    threading.Timer(0.3, faults.heal).start()
    peer.data(b"anew", rows[:45][::-1], flush=True)
    peer.hidden(b"anew", 0, 45)
    daemon.kill()
    daemon.start()
    assert Peer(daemon).open(b"anew", **{"from": 45}).next == 0


def test_a_mark_that_failed_is_not_of_the_next_life(daemon, faults, rows, want):
    """The stream begins anew before the mark of its end is tried again: that comes too late to be true."""
    producer = start_saved(daemon, b"again", rows, want)
    faults.arm("o", 0, FOR_GOOD)
    producer.peer.header(b"again", type="close")
    wait_for_error(daemon)
    anew = begin_anew(daemon, b"again", rows)
    faults.heal()
    assert daemon.ask("snapshot", stream=b"again")["ok"]
    wait_until(lambda: states(daemon)["error"] == "")
    anew.ack(b"again", durable=45)
    assert_kept(daemon, b"again", reply=False)


def test_a_mark_that_failed_is_not_of_a_stream_that_came_back(daemon, faults, rows, want):
    """Its peer lacked hidden states: the stream is open again before the mark of its end is tried again."""
    producer = start_saved(daemon, b"back", rows, want)
    faults.arm("o", 0, 1)
    producer.peer.header(b"back", type="close")
    wait_for_error(daemon)
    faults.heal()
    producer.connect()
    producer.encode(45)
    wait_until(lambda: states(daemon)["error"] == "")
    assert producer.save()["ok"]
    assert_kept(daemon, b"back", reply=False)


def test_a_stream_that_begins_anew_while_its_mark_is_made(daemon, faults, rows, want):
    """The disk hangs over the mark of its end: that, and what was kept, is removed before the next life is saved."""
    producer = start_saved(daemon, b"anew", rows, want)
    faults.arm("o", 0, 1, -1)
    producer.peer.header(b"anew", type="close")
    wait_until(lambda: faults.calls() == "o")
    anew = begin_anew(daemon, b"anew", rows)
    faults.heal()
    assert daemon.ask("snapshot", stream=b"anew")["ok"]
    anew.close()
    assert_kept(daemon, b"anew", reply=False)


def test_a_snapshot_waits_for_a_mark_that_failed_before_it(daemon, faults, rows, want):
    """That of a stream that closed later is no substitute for it."""
    daemon.start()
    producers = [Producer(daemon, name, rows, want) for name in (b"first", b"second")]
    for producer in producers:
        producer.encode(20)
        assert producer.save()["ok"]
    faults.arm("o", 0, 1)
    producers[0].peer.header(b"first", type="close")
    wait_for_error(daemon)
    faults.arm("o", 0, 1, -1)
    with ThreadPoolExecutor(1) as threads:
        snapshot = threads.submit(daemon.ask, "snapshot")
        time.sleep(0.1)
        producers[1].peer.header(b"second", type="close")
        wait_until(lambda: faults.calls() == "o")
        time.sleep(1.2)  # the first one's turn has come again, behind the second one's
        faults.arm("o", 0, FOR_GOOD)
        assert not snapshot.result()["ok"]
    faults.heal()
    assert daemon.ask("snapshot")["ok"]


def test_a_removal_that_failed_comes_before_the_next_life(daemon, faults, rows, want):
    """Or else what is left of the life before, in the same epoch, would be taken for the next one's states."""
    daemon.start()
    peer = Peer(daemon)
    peer.open(b"again", reply=False)
    peer.data(b"again", rows[:20][::-1])
    peer.ack(b"again", done=16)
    assert daemon.ask("snapshot", stream=b"again")["ok"]
    faults.arm("u", 0, 1)
    peer.header(b"again", type="close")
    wait_for_error(daemon)
    producer = Producer(daemon, b"again", rows, want)
    producer.encode(45)
    producer.save()
    daemon.kill()
    faults.heal()
    daemon.start()
    peer = Peer(daemon)
    assert peer.open(b"again", **{"from": 40}).next == 0
    peer.data(b"again", rows[:45], flush=True)
    assert same_bytes(peer.hidden(b"again", 0, 45), want[:45])


def test_the_end_while_states_cannot_be_removed(daemon, faults, rows):
    """The daemon tries as long as it may take; then it says what is left, and ends."""
    daemon.settings["shutdown_timeout"] = 0.5
    daemon.start()
    peer = Peer(daemon)
    peer.data(b"closed", rows[:20])
    peer.ack(b"closed", next=20)
    assert daemon.ask("snapshot")["ok"]
    faults.arm("us", 0, FOR_GOOD)
    peer.header(b"closed", type="close")
    wait_for_error(daemon)
    daemon.terminate()
    assert daemon.wait() == 1
    assert "could be published and saved within" in daemon.log() and os.strerror(errno.EIO) in daemon.log()


def test_streams_go_on_while_the_disk_hangs(daemon, faults, rows):
    """Also those whose turn to be saved has come: what waits for a slot is not kept from the device for that."""
    daemon.settings["state.interval"] = 0.05
    daemon.start()
    peer = Peer(daemon)
    names = [b"busy-%d" % i for i in range(8)]
    sent = dict.fromkeys(names, 0)

    def feed(rounds):
        """Each stream always has windows to go."""
        for _ in range(rounds):
            for name in names:
                peer.data(name, rows[:2 * WINDOW], pos=sent[name])
                sent[name] += 2 * WINDOW
            for name in names:
                peer.ack(name, done=sent[name] - 2 * WINDOW)

    feed(2)
    wait_until(lambda: feed(10) or states(daemon)["written"] > 20)
    faults.arm("d", 0, FOR_GOOD, -1)
    wait_until(lambda: feed(10) or faults.calls())
    feed(300)
    faults.heal()


def test_the_end_while_the_disk_hangs(daemon, faults, rows):
    """The daemon waits as long as it may take, says what is not saved, and ends; what was durable is there."""
    daemon.settings["shutdown_timeout"] = 0.5
    daemon.start()
    peer = Peer(daemon)
    for name in (b"saved", b"unsaved"):
        peer.data(name, rows[:20], flush=True)
        peer.ack(name, done=20)
    assert daemon.ask("snapshot")["ok"]
    peer.data(b"unsaved", rows[20:45])
    peer.ack(b"unsaved", done=40)
    faults.arm("d", 0, FOR_GOOD, -1)
    daemon.terminate()
    assert daemon.wait() == 1
    errors = "\n".join(errors_logged(daemon))
    assert "could be published and saved within 0.5 s" in errors and "the disk does not answer" in errors
    assert "stream unsaved: not saved: rows from 20 on" in errors and "stream saved" not in errors
    faults.heal()
    daemon.start()
    peer = Peer(daemon)
    assert [peer.open(name, reply=False).next for name in (b"saved", b"unsaved")] == [20, 20]


def test_the_end_with_many_streams_unsaved(daemon, faults, rows):
    """Those that are named are bounded, the others counted."""
    daemon.settings["shutdown_timeout"] = 0.5
    daemon.start()
    faults.arm("d", 0, FOR_GOOD, -1)
    peer = Peer(daemon)
    for i in range(25):
        peer.data(b"unsaved-%d" % i, rows[:20])
        peer.ack(b"unsaved-%d" % i, next=20)
    daemon.terminate()
    assert daemon.wait() == 1
    errors = errors_logged(daemon)
    assert sum(": not saved: rows from 0 on" in line for line in errors) == 20
    assert sum("5 more streams are not saved" in line for line in errors) == 1


def test_calls_that_a_signal_interrupts(daemon, faults, rows, want):
    """They are made again."""
    daemon.start()
    producer = Producer(daemon, b"interrupted", rows, want)
    for n in range(6):
        faults.arm("w", n, 1, errno.EINTR)
        producer.encode(20 * n + 20)
        assert producer.save()["ok"]
    daemon.kill()
    daemon.start()
    faults.arm("r", 0, 1, errno.EINTR)
    producer.connect()
    assert producer.have == 120 and faults.happened() and daemon.ask("status")["rows_in"] == 0


def test_one_state_that_cannot_be_read(daemon, rows):
    """It is tried again and again, and keeps nobody else from the disk."""
    daemon.start()
    peer = Peer(daemon)
    peer.open(b"unread")
    daemon.terminate()
    assert daemon.wait() == 0
    folder = daemon.settings["state.dir"]
    state, = (name for name in os.listdir(folder) if name.endswith(".safetensors"))
    os.remove(os.path.join(folder, state))
    os.mkdir(os.path.join(folder, state))
    daemon.settings["state.interval"] = 0
    daemon.start()
    peer = Peer(daemon)
    peer.header(b"unread", type="open")
    wait_for_error(daemon)
    for i in range(500):
        peer.data(b"stream-%d" % i, rows[:8], pos=0)
    wait_until(lambda: states(daemon)["written"] >= 500)
    assert [stream["stream"] for stream in daemon.ask("streams")["streams"] if stream["state"] == "loading"] == [b"unread"]


def wait_for_error(daemon):
    wait_until(lambda: states(daemon)["error"])
    return states(daemon)["error"]


def leave_on_disk(daemon, stream, rows, want, *stops):
    """A stream with a state at each of these rows, and a daemon that has not read them yet."""
    daemon.start()
    producer = Producer(daemon, stream, rows, want)
    for stop in stops:
        producer.encode(stop)
        assert producer.save()["ok"]
    daemon.kill()
    daemon.start()
    return producer


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE], ids=errno.errorcode.get)
def test_a_state_that_cannot_be_read_just_now(daemon, faults, rows, want, error):
    """Its messages wait, others are served, and it comes back."""
    leave_on_disk(daemon, b"unread", rows, want, 20)
    faults.arm("o", 0, FOR_GOOD, error)
    peer = Peer(daemon)
    peer.header(b"unread", type="open", reply=True, **{"from": 20})
    peer.data(b"unread", rows[20:45], pos=20, flush=True)
    assert os.strerror(error) in wait_for_error(daemon)
    assert [stream["state"] for stream in daemon.ask("streams")["streams"]] == ["loading"]
    assert Producer(daemon, b"other", rows, want).have == 0
    faults.heal()
    assert same_bytes(peer.hidden(b"unread", 20, 45), want[20:45])
    assert states(daemon)["error"] == "" and states(daemon)["damaged"] == 0


def test_an_export_that_cannot_be_read_just_now(daemon, faults, rows, want):
    leave_on_disk(daemon, b"unread", rows, want, 20)
    faults.arm("o", 0, FOR_GOOD)
    answer = daemon.ask("export", stream=b"unread")
    assert answer["code"] == "internal" and os.strerror(errno.EIO) in answer["message"]
    faults.heal()
    assert daemon.ask("export", stream=b"unread")["position"] == 16


def test_a_state_that_is_unreadable(daemon, faults, rows, want):
    """EIO where the bytes should be: the state before it is used, as with any other damage."""
    producer = leave_on_disk(daemon, b"unreadable", rows, want, 20, 45)
    faults.arm("r", 0, 1)
    consumer = Subscriber(daemon, b"unreadable")
    producer.connect()
    assert producer.have == 45 and daemon.ask("status")["rows_in"] == 25
    event = consumer.take(b"unreadable", "event")
    assert (event.event, event.pos) == ("reset", 16) and "damaged" in event.message


@pytest.mark.parametrize("n", range(5))
def test_a_folder_that_cannot_be_listed(daemon, faults, rows, n):
    """A daemon that knew only some of the streams would begin the others anew: it says so and ends."""
    daemon.start()
    peer = Peer(daemon)
    for name in (b"a", b"b"):
        peer.open(name, reply=False)
        peer.data(name, rows[:20])
        peer.ack(name, next=20, done=16)
    time.sleep(0.002)
    assert daemon.ask("snapshot")["ok"]
    daemon.kill()
    faults.arm("l", n, 1)
    with pytest.raises(AssertionError, match="cannot be listed: Input/output error"):
        daemon.start()
    assert daemon.process.wait() == 1
    faults.heal()
    daemon.start()
    peer = Peer(daemon)
    assert [peer.open(name).next for name in (b"a", b"b")] == [20, 20]


# --- at random -------------------------------------------------------------------------------------------------------

def test_a_flaky_disk_and_kills(daemon, faults, random, rows, want, tmp_path):
    """Producers that send again from `durable` lose nothing, whatever fails and however often the daemon is killed."""
    numbers, failures = itertools.count(), 0
    daemon.settings["state.interval"] = 0.01

    def next_feed():
        n = random.choice((3, 40, 700, 4000))
        return Feed(b"feed-%d" % next(numbers), rows[:n], want[:n])
    keepers = [Keeper(daemon, random, next_feed) for _ in range(2)]
    for _ in range(KILLS):
        daemon.start()
        faults.arm(random.choice((WRITING, WRITING + REMOVING, *WRITING, REMOVING)), random.randrange(60),
                   random.choice((1, 2, 10, FOR_GOOD)), random.choice((errno.EIO, errno.ENOSPC, 0)))
        for keeper in keepers:
            keeper.connect()
        run(keepers, random.uniform(0.05, 0.3))
        failures += states(daemon)["errors"]
        daemon.kill()
        faults.heal()
    daemon.start()
    for keeper in keepers:
        keeper.connect()
    finish(keepers)
    assert states(daemon)["damaged"] == 0 and states(daemon)["error"] == ""
    print(f"{KILLS} kills, {failures} failures")
    assert failures


# --- a small file system ---------------------------------------------------------------------------------------------

def test_rewound_while_its_first_state_is_written(daemon, faults, rows, want):
    """A slow disk: the peer that lacks the newest hidden states is told to go on from that state, not from 0."""
    daemon.start()
    first, second = Peer(daemon), Peer(daemon)
    first.open(b"s")
    first.data(b"s", rows[:WINDOW])
    first.hidden(b"s", 0, WINDOW)
    faults.arm("n", n=1, error=-1)
    with ThreadPoolExecutor(1) as threads:
        snapshot = threads.submit(daemon.ask, "snapshot")
        wait_until(lambda: faults.calls() == "n")
        first.data(b"s", rows[WINDOW:2 * WINDOW], pos=WINDOW)
        first.hidden(b"s", WINDOW, 2 * WINDOW)
        second.header(b"s", type="open", reply=True, **{"from": WINDOW})
        wait_until(lambda: daemon.ask("streams")["streams"][0]["state"] == "loading")
        faults.heal()
        assert snapshot.result()["ok"]
    assert second.ack(b"s").next == WINDOW
    second.data(b"s", rows[WINDOW:3 * WINDOW], pos=WINDOW)
    assert same_bytes(second.hidden(b"s", WINDOW, 3 * WINDOW), want[WINDOW:3 * WINDOW])


@pytest.fixture
def disk(daemon, tmp_path):
    """Room for some fifteen states."""
    disk = SmallDisk(tmp_path / "disk", 400 * 1024)
    daemon.prefix = disk.enter
    daemon.settings["state.dir"] = str(disk.folder / "states")
    yield disk
    daemon.kill()
    disk.close()


@pytest.mark.parametrize("what, error", [("full", errno.ENOSPC), ("read-only", errno.EROFS)], ids=["full", "read-only"])
def test_a_disk_that_fills_and_one_that_becomes_read_only(daemon, disk, rows, want, what, error):
    daemon.settings["state.interval"] = 0.05
    daemon.start()
    producer = Producer(daemon, b"small", rows, want)
    producer.encode(20)
    wait_until(lambda: producer.told() == 20)
    if what == "full":
        disk.fill()
    else:
        disk.remount("ro")
    reached = producer.told()
    for stop in range(100, 901, 100):
        producer.encode(stop)
    assert os.strerror(error) in wait_for_error(daemon) and os.strerror(error) in errors_logged(daemon)[-1]
    assert producer.told() == reached < 900
    daemon.kill()  # and so it starts again, and goes on
    daemon.start()
    producer.connect()
    assert daemon.ask("status")["rows_in"] == 900 - reached
    producer.encode(1000)
    assert os.strerror(error) in wait_for_error(daemon)
    assert producer.told() == reached
    if what == "full":
        disk.make_room()
    else:
        disk.remount("rw")
    wait_until(lambda: producer.told() == 1000)
    assert states(daemon)["error"] == "" and "works again" in daemon.log()
    assert not any(name.endswith(".part") for name in disk.names())
    daemon.kill()
    daemon.start()
    producer.connect()
    assert daemon.ask("status")["rows_in"] == 0


def test_a_disk_that_fills_under_load(daemon, disk, random, rows, want):
    """It has room for fewer states than there are streams: some are saved, some cannot be."""
    numbers = itertools.count()
    daemon.settings["state.interval"] = 0.02

    def next_feed():
        return Feed(b"feed-%d" % next(numbers), rows, want)
    keepers = [Keeper(daemon, random, next_feed, streams=8) for _ in range(3)]
    daemon.start()
    for _ in range(4):
        for keeper in keepers:
            keeper.draining = True
            keeper.connect()
        run(keepers, 0.3)
        daemon.kill()
        daemon.start()
    for keeper in keepers:
        keeper.connect()
    finish(keepers)
    assert states(daemon)["damaged"] == 0 and os.strerror(errno.ENOSPC) in daemon.log()


def test_a_read_only_folder_from_the_start(daemon, disk, rows, want):
    """There is nothing to serve from: the daemon says so and ends."""
    disk.remount("ro")
    with pytest.raises(AssertionError, match="Read-only file system"):
        daemon.start()
    assert daemon.process.wait() == 1
