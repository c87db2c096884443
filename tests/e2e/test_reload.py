"""Reloading: checked whole, applied live, honest about the rest, and nothing is lost meanwhile."""
import json
import signal
import subprocess

import pytest

from harness import MAMBA2CTL, Peer, meanwhile, same_bytes

CASE, WINDOW = "seed-46032", 8


@pytest.fixture
def file(tmp_path):
    """A configuration file: file(text) writes it anew."""
    path = tmp_path / "mamba2d.yaml"

    def write(text):
        path.write_text(text)
        return str(path)
    return write


@pytest.fixture
def rows(golden):
    return golden(CASE).rows


def test_live_keys_change_and_the_others_are_named(daemons, file, rows):
    daemon = daemons(CASE, config=file("limits: {credit_rows: 100}\nwindow: 8\n"))
    peer = Peer(daemon)
    assert peer.open(b"s").credit == 100
    file("limits: {credit_rows: 50}\nwindow: 16\nstreams: {max: 1}\nthreads: 2\n")
    answer = daemon.ask("reload")
    assert (answer["ok"], answer["changed"], answer["restart"]) == (
        True, ["streams.max", "limits.credit_rows"], ["threads", "window"])
    assert peer.take(b"s", "ack").credit == 50, "an ack tells the new credit at once"
    peer.data(b"s", rows[:51])
    peer.refusal(b"s", "no_credit")
    peer.header(b"other", type="open")
    peer.refusal(b"other", "too_many_streams")
    assert daemon.ask("status")["window"] == 8
    assert daemon.ask("reload")["restart"] == ["threads", "window"], "as long as they differ"


BAD = {
    "not YAML": ("streams: [", "mamba2d.yaml:"),
    "an unknown key": ("streams: {max: 1}\nstream: 1\n", "mamba2d.yaml:2:1: unknown key"),
    "a live key out of range": ("streams: {max: 0}\n", "mamba2d.yaml:1:16: streams.max"),
    "another key out of range": ("streams: {max: 1}\nwindow: 0\n", "mamba2d.yaml:2:9: window"),
    "keys that contradict each other": ("streams: {max: 1}\nlimits: {credit_rows: 1}\n", "limits.credit_rows"),
    "a live key and a running one": ("streams: {max: 1}\nwindow: 4\nlimits: {credit_rows: 7}\n",
                                     "beside the keys that need a restart: limits.credit_rows: 7"),
    "a layer that the model lacks": ("streams: {max: 1}\noutput: {layers: [99]}\n", "output.layers: 99"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD.keys())
def test_after_a_mistake_nothing_has_changed(daemons, file, text, message):
    daemon = daemons(CASE, config=file("window: 8\n"))
    file(text)
    answer = daemon.ask("reload")
    assert not answer["ok"] and message in answer["message"]
    peer = Peer(daemon)
    assert peer.open(b"one").credit == 16384
    peer.open(b"two")
    assert "nothing is changed" in daemon.log()


def test_a_file_that_is_gone(daemons, file, tmp_path):
    daemon = daemons(CASE, config=file("window: 8\n"))
    (tmp_path / "mamba2d.yaml").unlink()
    answer = daemon.ask("reload")
    assert not answer["ok"] and "mamba2d.yaml: No such file" in answer["message"]


def test_overrides_stay_over_the_file(daemons, file):
    daemon = daemons(CASE, config=file("streams: {max: 5}\n"), window=WINDOW, **{"limits.credit_rows": 33})
    file("limits: {credit_rows: 44}\nstreams: {max: 6}\n")
    assert daemon.ask("reload")["changed"] == ["streams.max"]
    assert Peer(daemon).open(b"s").credit == 33


@pytest.mark.parametrize("before, after", [(0, 0.01), (3600, 0.01)])
def test_rows_that_wait_already_are_flushed_in_time(daemons, file, rows, before, after):
    daemon = daemons(CASE, config=file(f"streams: {{flush_after: {before}}}\n"), window=WINDOW)
    peer = Peer(daemon)
    peer.open(b"s")
    peer.data(b"s", rows[:5])
    peer.ack(b"s", next=5)
    file(f"streams: {{flush_after: {after}}}\n")
    assert daemon.ask("reload")["ok"]
    assert len(peer.hidden(b"s", 0, 5)) == 5


def test_no_flush_after_it_was_switched_off(daemons, file, rows):
    daemon = daemons(CASE, config=file("streams: {flush_after: 0.5}\n"), window=WINDOW)
    peer = Peer(daemon)
    peer.open(b"s")
    peer.data(b"s", rows[:5])
    peer.ack(b"s", next=5)
    file("streams: {flush_after: 0}\n")
    assert daemon.ask("reload")["ok"]
    assert peer.silent(1)
    peer.header(b"s", type="flush")
    assert len(peer.hidden(b"s", 0, 5)) == 5


def test_sighup_and_mamba2ctl(daemons, file):
    daemon = daemons(CASE, config=file("streams: {max: 5}\n"), window=WINDOW)
    file("streams: {max: 6}\n")
    daemon.terminate(signal.SIGHUP)
    while "reloaded" not in daemon.log():
        daemon.ask("status")
    file("streams: {max: 7}\n")
    result = subprocess.run([MAMBA2CTL, "reload", "--json", "--control", daemon.control], capture_output=True,
                            text=True, timeout=60)
    assert (result.returncode, json.loads(result.stdout)["changed"]) == (0, ["streams.max"])
    file("streams: {max: 0}\n")
    result = subprocess.run([MAMBA2CTL, "reload", "--control", daemon.control], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 4 and "streams.max" in result.stderr
    assert daemon.log().count("streams.max is changed") == 2


def test_reload_under_load_loses_no_row(daemons, file, rows):
    """Hundreds of reloads, good and bad, while four streams run: the same bytes as without."""
    daemon = daemons(CASE, config=file("streams: {max: 100}\n"), window=WINDOW, **{"log.level": "info"})
    peer = Peer(daemon)
    want = peer.encode(rows)
    streams = [b"a", b"b", b"c", b"d"]

    def reload(stop):
        for i in range(10 ** 6):
            file(f"streams: {{max: {100 + i % 50}, flush_after: {i % 3 * 100}}}\nlimits: {{credit_rows: {20000 + i}}}\n"
                 if i % 10 else "streams: {max: 0}\n")
            assert daemon.ask("reload")["ok"] == bool(i % 10)
            if stop.is_set():
                return

    for round_ in range(5):
        with meanwhile(reload):
            for stream in streams:
                peer.open(stream)
            for start in range(0, len(rows), 3):
                for stream in streams:
                    peer.data(stream, rows[start:start + 3], pos=start, end=start + 3 >= len(rows))
            for stream in streams:
                assert same_bytes(peer.hidden(stream, 0, len(rows)), want)
    status = daemon.ask("status")
    assert (status["gaps"], status["refused"], status["duplicate_rows"]) == (0, {}, 0)
