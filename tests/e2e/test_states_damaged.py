"""State files that a disk has damaged, or that belong to something else: never silently a new start."""
import os
import shutil
import subprocess
import time

import numpy as np
import pytest

from harness import Golden, MAMBA2CTL, MAMBA2D, Peer, Subscriber, TIMEOUT, same_bytes, settings_arguments

CASE, WINDOW = "seed-46032", 8


@pytest.fixture(scope="module")
def rows(golden):
    return golden(CASE).rows


@pytest.fixture(scope="module")
def want(shared_daemons, rows):
    return Peer(shared_daemons(CASE, window=WINDOW)).encode(rows)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "states"


@pytest.fixture
def daemon(daemons, rows, folder):
    """A daemon that was killed, with two states of the stream "damaged", at 16 and at 32 rows."""
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(folder), "state.interval": 60})
    peer = Peer(daemon)
    for stop in (16, 32):
        peer.data(b"damaged", rows[stop - 16:stop])
        peer.open(b"damaged", reply=False)
        peer.ack(b"damaged", done=stop)
        assert daemon.ask("snapshot")["ok"]
        time.sleep(0.01)  # so that nothing else counts as changed before the snapshot
    daemon.kill()
    assert len(states(folder)) == 2
    return daemon


def states(folder):
    """Paths of the states, oldest first."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(".safetensors"))


def damage(path, how):
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "empty":
        os.truncate(path, 0)
    elif how == "missing":
        path.unlink()
    else:
        with open(path, "r+b") as f:
            f.seek(path.stat().st_size // 2)
            byte = f.read(1)[0]
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty"])
def test_the_state_before_is_used_and_it_is_said(daemon, rows, want, folder, how):
    newest = states(folder)[-1]
    damage(newest, how)
    daemon.start()
    peer, consumer = Peer(daemon), Subscriber(daemon, b"damaged")
    ack = peer.open(b"damaged")
    assert (ack.next, ack.done, ack.durable) == (16, 16, 0)
    event = consumer.take(b"damaged", "event")
    assert (event.event, event.epoch, event.pos) == ("reset", 0, 16) and "damaged" in event.message
    warning = next(line for line in daemon.log().splitlines() if line.startswith("<4>"))
    assert newest.name in warning
    assert daemon.ask("status")["states"]["damaged"] == 1
    peer.data(b"damaged", rows[16:], pos=16, flush=True)
    assert same_bytes(peer.hidden(b"damaged", 16, len(rows)), want[16:])
    assert newest.name + ".damaged" in os.listdir(folder), "somebody may want to look at it"
    daemon.terminate()
    daemon.wait()
    daemon.start()
    assert Peer(daemon).open(b"damaged").next == len(rows)


def test_an_export_says_that_it_is_of_the_state_before(daemon, folder):
    """And when the stream comes back from there, its consumers are told."""
    newest = states(folder)[-1]
    damage(newest, "truncated")
    daemon.start()
    consumer = Subscriber(daemon, b"damaged")
    answer = daemon.ask("export", stream=b"damaged")
    assert answer["position"] == 16 and newest.name in answer["damaged"]
    assert any(line.startswith("<4>") and newest.name in line for line in daemon.log().splitlines())
    assert daemon.ask("status")["states"]["damaged"] == 1
    assert "damaged" not in daemon.ask("export", stream=b"damaged"), "it is put aside by now"
    assert Peer(daemon).open(b"damaged").next == 16
    assert "damaged" in consumer.take(b"damaged", "event").message


def test_mamba2ctl_export_says_so_too(daemon, folder, tmp_path):
    newest = states(folder)[-1]
    damage(newest, "truncated")
    daemon.start()
    done = subprocess.run([MAMBA2CTL, "export", "--control", daemon.control, "damaged", tmp_path / "file"],
                          capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0 and newest.name in done.stderr and "the state before it" in done.stderr


def refused(daemon, rows, message):
    """What the stream is refused with."""
    peer = Peer(daemon)
    if message == "data":
        peer.data(b"damaged", rows[32:40], pos=32)
    else:
        peer.header(b"damaged", type="open", **({"from": 20} if message == "open from" else {}))
    return peer.refusal(b"damaged", "state_damaged").message


@pytest.mark.parametrize("message", ["open", "data", "open from"])
def test_where_both_are_damaged_the_stream_is_refused_until_it_is_reset(daemon, rows, want, folder, message):
    for path in states(folder):
        damage(path, "flipped")
    before = [path.read_bytes() for path in states(folder)]
    for _ in range(2):
        daemon.start()
        for _ in range(2):
            assert "damaged: checksum" in refused(daemon, rows, message)
        assert Peer(daemon).open(b"sound").next == 0, "others are served"
        assert [path.read_bytes() for path in states(folder)[:2]] == before
        daemon.kill()
    daemon.start()
    assert daemon.ask("reset", stream=b"damaged")["ok"]
    peer = Peer(daemon)
    assert peer.open(b"damaged").next == 0
    peer.data(b"damaged", rows[:16])
    assert same_bytes(peer.hidden(b"damaged", 0, 16), want[:16])


def test_from_before_the_damage(daemon, rows, want, folder):
    """The newest is not needed, so its damage is no obstacle."""
    damage(states(folder)[-1], "flipped")
    daemon.start()
    peer = Peer(daemon)
    assert peer.open(b"damaged", **{"from": 20}).next == 16
    peer.data(b"damaged", rows[16:40], pos=16)
    assert same_bytes(peer.hidden(b"damaged", 16, 40), want[16:40])


def test_a_file_that_went_away(daemon, rows, want, folder):
    daemon.start()
    damage(states(folder)[-1], "missing")
    peer = Peer(daemon)
    assert peer.open(b"damaged").next == 16
    assert "missing" in daemon.log()


def test_leftovers_are_no_states(daemon, folder):
    newest = states(folder)[-1]
    part = folder / (newest.name[:-len("2.safetensors")] + "3.safetensors.part")
    part.write_bytes(newest.read_bytes()[:-100])
    daemon.start()
    assert not part.exists()
    assert Peer(daemon).open(b"damaged").next == 32


@pytest.mark.parametrize("what", ["model", "window", "layout", "format"])
def test_a_state_of_something_else(daemon, rows, folder, what):
    model, window = daemon.settings["model"], WINDOW
    if what == "model":  # of the same shape
        model = shutil.copytree(model, folder.parent / "other")
        weights = bytearray((model / "model.safetensors").read_bytes())
        weights[-2] ^= 1
        (model / "model.safetensors").write_bytes(weights)
    elif what == "window":
        window = 4
    elif what == "format":  # of a later version, whose checksum is made in some other way
        newest = states(folder)[-1]
        newest.write_bytes(newest.read_bytes().replace(b"mamba2d-state-1", b"mamba2d-state-2"))
    else:
        model = Golden("odd-shapes").folder
    daemon.settings.update(model=model, window=window)
    before = [path.read_bytes() for path in states(folder)]
    daemon.start()
    peer = Peer(daemon)
    peer.header(b"damaged", type="open")
    message = peer.refusal(b"damaged", "state_damaged").message
    said = {"window": "of window 8, the window here is 4", "format": "format mamba2d-state-2, expected mamba2d-state-1"}
    assert said.get(what, "the model here is") in message
    assert [path.read_bytes() for path in states(folder)] == before, "they are somebody's"
    assert peer.open(b"new").next == 0


def test_a_state_of_another_device(daemon, rows, want, folder):
    """Precision is part of what a device is called: states are float32 in any case."""
    daemon.settings["precision"] = "bfloat16"
    daemon.start()
    peer = Peer(daemon)
    assert peer.open(b"damaged").next == 32
    assert "goes on here" in daemon.log()
    peer.data(b"damaged", rows[32:40], pos=32)
    hidden = peer.hidden(b"damaged", 32, 40)
    assert np.linalg.norm(hidden - want[32:40]) < 0.02 * np.linalg.norm(want[32:40])


def test_one_daemon_to_a_folder(daemon):
    daemon.start()
    second = subprocess.run([MAMBA2D, *settings_arguments(daemon.settings)], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and "another daemon has it" in second.stderr
    assert "warm in" not in second.stderr
    assert daemon.ask("status")["ok"]


def test_what_was_confirmed_of_an_epoch_says_nothing_of_the_one_before(daemons, rows, folder):
    """The stream goes on in that one, as all states of its newest epoch are damaged; it was evicted in between."""
    daemon = daemons(CASE, window=WINDOW, **{"state.dir": str(folder), "state.interval": 60, "state.keep": 4,
                                             "streams.max": 1, "streams.on_gap": "reset"})
    peer = Peer(daemon)
    peer.open(b"s")
    peer.data(b"s", rows[:19])
    peer.hidden(b"s", 0, 16)
    peer.data(b"s", rows[19:20], pos=19, got=8)
    peer.ack(b"s", next=20)
    assert daemon.ask("snapshot")["ok"]
    first, = states(folder)
    peer.data(b"s", rows[:30], pos=30)
    peer.hidden(b"s", 16, 20)
    peer.hidden(b"s", 0, 24, epoch=1)
    peer.data(b"s", rows[30:31], pos=30, epoch=1, got=24)
    peer.take(b"s", "ack")
    Peer(daemon).open(b"other")  # has the place in memory now
    for path in states(folder):
        if path.name.split("-")[0] == first.name.split("-")[0] and path != first:
            damage(path, "flipped")
    ack = Peer(daemon).open(b"s")
    assert (ack.epoch, ack.next, ack.done, ack.durable) == (0, 20, 16, 0)
