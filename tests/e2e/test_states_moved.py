"""States go out of a daemon and into one: export, import and fork, by mamba2ctl and by the Python client, and from and
to Hugging Face's cache."""
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../protocol/python"))

from harness import (MAMBA2CTL, TIMEOUT, Golden, Peer, Subscriber, exact_in_all, load_safetensors, relative_error,
                     same_bytes, to_bfloat16)
from mamba2d import Client, Refused

CASE, WINDOW = "seed-46032", 8


@pytest.fixture(scope="module")
def rows(golden):
    return np.concatenate([golden(CASE).rows, golden(CASE).rows[::-1]])


@pytest.fixture(scope="module")
def want(shared_daemons, rows):
    return Peer(shared_daemons(CASE, window=WINDOW)).encode(rows)


@pytest.fixture
def start(daemons, tmp_path):
    """Start a daemon; name tells several apart."""
    def start(name="one", **settings):
        return daemons(CASE, **{"window": WINDOW, "state.dir": str(tmp_path / name), **settings})
    return start


def ctl(daemon, command, *arguments, status=0):
    """Run mamba2ctl, which must end with this exit status; returns what it said."""
    result = subprocess.run([MAMBA2CTL, command, "--control", daemon.control, *map(str, arguments)],
                            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert result.returncode == status, result
    return result.stdout + result.stderr


def feed(daemon, stream, rows, start, stop, epoch=0, **header):
    """Feed rows [start, stop) to a stream; returns its hidden states, and the peer."""
    peer = Peer(daemon)
    assert peer.open(stream, epoch=epoch).next == start
    peer.data(stream, rows[start:stop], pos=start, epoch=epoch, flush=True, **header)
    return peer.hidden(stream, start, stop, epoch=epoch)


# --- mamba2ctl -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [0, 5, 16, 21])
def test_from_one_daemon_to_another(start, rows, want, tmp_path, n):
    """Whole windows and the rows behind them; the exported stream goes on as well."""
    one, other, file = start(), start("other"), tmp_path / "state"
    feed(one, b"moved", rows, 0, n) if n else Peer(one).open(b"moved")
    ctl(one, "export", "moved", file)
    ctl(other, "import", file)
    for daemon in (one, other):
        assert same_bytes(feed(daemon, b"moved", rows, n, 60), want[n:60])


def with_half_pending(state):
    """The state as a tool may write it: its pending rows in half precision, and no checksum."""
    size = int.from_bytes(state[:8], "little")
    header, data = json.loads(state[8:8 + size]), state[8 + size:]
    begin, end = header["pending"]["data_offsets"]
    assert end == len(data)
    half = np.frombuffer(data[begin:end], np.float32).astype(np.float16).tobytes()
    header["pending"].update(dtype="F16", data_offsets=[begin, begin + len(half)])
    del header["__metadata__"]["checksum"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[:begin] + half


def test_pending_rows_of_another_float_type(start, rows):
    rows, daemon = rows.astype(np.float16).astype(np.float32), start()
    want = Peer(daemon).encode(rows)
    feed(daemon, b"first", rows, 0, 21)
    state = with_half_pending(daemon.ask("export", stream=b"first")["state"])
    assert daemon.ask("import", stream=b"second", state=state)["next"] == 21
    assert same_bytes(feed(daemon, b"second", rows, 21, 60), want[21:60])


def test_pending_rows_that_came_in_several_dtypes(start, rows):
    """An unfinished window travels with its state, and goes on there."""
    rows, daemon = exact_in_all(rows), start()
    want = Peer(daemon).encode(rows)
    peer = Peer(daemon)
    peer.open(b"first")
    peer.data(b"first", rows[:18].astype(np.float16))
    peer.data(b"first", to_bfloat16(rows[18:20]), dtype="bfloat16")
    peer.data(b"first", rows[20:21], flush=True)
    peer.hidden(b"first", 0, 21)
    daemon.ask("import", stream=b"second", state=daemon.ask("export", stream=b"first")["state"])
    assert same_bytes(feed(daemon, b"second", rows.astype(np.float16), 21, 60), want[21:60])


def test_what_came_in_is_saved_at_once(start, rows, want, tmp_path):
    daemon = start(**{"state.interval": 1e6})
    feed(daemon, b"first", rows, 0, 21)
    ctl(daemon, "export", "first", tmp_path / "state")
    ctl(daemon, "import", tmp_path / "state", "second")
    ctl(daemon, "fork", "second", "third")
    deadline = time.monotonic() + TIMEOUT
    while daemon.ask("status")["states"]["written"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    daemon.kill()
    daemon.start()
    for stream in (b"second", b"third"):
        assert same_bytes(feed(daemon, stream, rows, 21, 60), want[21:60])


def test_a_state_file_is_a_state(start, rows, want, tmp_path):
    """What is in state.dir can be imported elsewhere, and a damaged one cannot."""
    one, other = start(), start("other")
    feed(one, b"file", rows, 0, 21)
    ctl(one, "snapshot", "file")
    file, = (tmp_path / "one").glob("*.safetensors")
    ctl(other, "import", file, "copy")
    assert same_bytes(feed(other, b"copy", rows, 21, 60), want[21:60])
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    assert "damaged: checksum" in ctl(other, "import", tmp_path / "damaged", "damaged", status=4)
    (tmp_path / "damaged").write_bytes(b"")
    assert "refused (state_damaged)" in ctl(other, "import", tmp_path / "damaged", "damaged", status=4)


def test_into_a_stream_that_exists(start, rows, want, tmp_path):
    """It goes on from the state in its next epoch."""
    daemon, file = start(), tmp_path / "state"
    feed(daemon, b"from", rows, 0, 21)
    feed(daemon, b"into", rows, 0, 10)
    consumer = Subscriber(daemon, b"into")
    ctl(daemon, "export", "from", file)
    answer = daemon.ask("import", stream=b"into", state=file.read_bytes())
    assert (answer["ok"], answer["epoch"], answer["next"]) == (True, 1, 21)
    assert same_bytes(feed(daemon, b"into", rows, 21, 60, epoch=1), want[21:60])
    assert same_bytes(consumer.hidden(b"into", 21, 60, epoch=1), want[21:60])
    answer = daemon.ask("fork", stream=b"from", to=b"into")
    assert (answer["ok"], answer["epoch"], answer["next"]) == (True, 2, 21)


def test_a_fork(start, rows, want):
    """One prefix, many continuations, and none knows of the others; all survive a kill."""
    daemon = start()
    feed(daemon, b"prefix", rows, 0, 21)
    for i in range(5):
        ctl(daemon, "fork", "prefix", f"fork-{i}")
    other = np.concatenate([rows[:21], rows[60:]])
    other_want = Peer(daemon).encode(other)
    feed(daemon, b"fork-0", other, 21, 40)
    ctl(daemon, "snapshot")
    daemon.kill()
    daemon.start()
    assert same_bytes(feed(daemon, b"fork-0", other, 40, 60), other_want[40:60])
    for stream in (b"fork-1", b"prefix", b"fork-4"):
        assert same_bytes(feed(daemon, stream, rows, 21, 60), want[21:60])


@pytest.mark.parametrize("command", ["export", "fork"])
def test_of_a_stream_that_is_on_disk(start, rows, want, tmp_path, command):
    daemon = start(**{"streams.max": 1})
    feed(daemon, b"away", rows, 0, 21)
    Peer(daemon).open(b"here")
    if command == "fork":
        ctl(daemon, "fork", "away", "copy")
    else:
        ctl(daemon, "export", "away", tmp_path / "state")
        ctl(daemon, "import", tmp_path / "state", "copy")
    for stream in (b"copy", b"away"):
        assert same_bytes(feed(daemon, stream, rows, 21, 60), want[21:60])


def test_more_forks_than_fit(start, rows, want):
    """Those before leave memory; asked for at once, while other streams come and go."""
    daemon = start(**{"streams.max": 3})
    feed(daemon, b"prefix", rows, 0, 21)
    forks = [b"fork-%d" % i for i in range(20)]
    asked = [subprocess.Popen([MAMBA2CTL, "fork", "--control", daemon.control, "prefix", name.decode()],
                              stdout=subprocess.DEVNULL) for name in forks]
    for i in range(10):
        feed(daemon, b"other-%d" % i, rows, 0, 5)
    assert [process.wait(60) for process in asked] == [0] * 20
    for name in (b"prefix", *forks):
        assert same_bytes(feed(daemon, name, rows, 21, 60), want[21:60])


def test_while_the_stream_is_fed(start, rows, want, tmp_path):
    """A state is a consistent cut, whenever it is taken; nobody else waits for it."""
    daemon, other = start(), start("other")
    peer = Peer(daemon)
    peer.open(b"busy")
    for first in range(0, 128, 4):
        peer.data(b"busy", rows[first:first + 4], pos=first)
        if first % 32 == 12:
            ctl(daemon, "export", "busy", tmp_path / "state")
            ctl(other, "import", tmp_path / "state", f"busy-{first}")
    assert same_bytes(peer.hidden(b"busy", 0, 128), want[:128])
    for first in range(12, 128, 32):
        peer = Peer(other)
        n = peer.open(b"busy-%d" % first).next
        assert n >= first + 4 - 128
        peer.data(b"busy-%d" % first, rows[n:], pos=n, flush=True)
        assert same_bytes(peer.hidden(b"busy-%d" % first, n, 128), want[n:])


def test_a_state_larger_than_any_message(start, rows, want, tmp_path):
    one, other = start(), start("other", **{"limits.message_bytes": 1024})
    feed(one, b"large", rows, 0, 21)
    ctl(one, "export", "large", tmp_path / "state")
    assert os.path.getsize(tmp_path / "state") > 4 * 1024
    ctl(other, "import", tmp_path / "state")
    assert same_bytes(feed(other, b"large", rows, 21, 24), want[21:24])


def test_where_there_is_no_room(daemons, rows):
    """Without a folder for states nothing can leave memory, and a stream more is refused."""
    daemon = daemons(CASE, window=WINDOW, **{"streams.max": 1})
    feed(daemon, b"one", rows, 0, 5)
    state = daemon.ask("export", stream=b"one")["state"]
    for answer in daemon.ask("import", state=state, stream=b"two"), daemon.ask("fork", stream=b"one", to=b"two"):
        assert not answer["ok"] and answer["code"] == "too_many_streams"
    daemon.ask("drain")
    for answer in daemon.ask("import", state=state), daemon.ask("fork", stream=b"one", to=b"one"):
        assert not answer["ok"] and answer["code"] == "shutting_down"


def test_in_the_place_of_one_on_disk(start, rows, want):
    """It is replaced as one in memory is, in its next epoch, and what was saved of it does not come back."""
    daemon = start(**{"streams.max": 1, "state.interval": 0.01})
    feed(daemon, b"one", rows, 0, 5)
    state = daemon.ask("export", stream=b"one")["state"]
    feed(daemon, b"two", rows, 0, 21)
    feed(daemon, b"one", rows, 5, 6)
    for epoch in (1, 2):
        answer = daemon.ask("import", state=state, stream=b"two")
        assert (answer["ok"], answer["epoch"], answer["next"]) == (True, epoch, 5)
        feed(daemon, b"one", rows, 5 + epoch, 6 + epoch)
    peer = Peer(daemon)
    peer.data(b"two", rows[21:22], pos=21)
    peer.refusal(b"two", "stale_epoch")
    assert peer.open(b"two", epoch=2).next == 5
    peer.data(b"two", rows[5:30], epoch=2, flush=True)
    assert same_bytes(peer.hidden(b"two", 5, 30, epoch=2), want[5:30])


def test_of_a_stream_that_is_closed(start, rows):
    """There is none, although one is kept for as long as its peer may lack the end."""
    daemon = start()
    peer = Peer(daemon)
    peer.open(b"over", reply=True)
    peer.data(b"over", rows[:21])
    peer.ack(b"over", done=16)
    assert daemon.ask("snapshot", stream=b"over")["ok"]
    peer.header(b"over", type="close")
    peer.hidden(b"over", 0, 21)
    for answer in daemon.ask("export", stream=b"over"), daemon.ask("fork", stream=b"over", to=b"copy"):
        assert not answer["ok"] and answer["code"] == "closed"


def test_of_a_state_that_is_damaged(start, rows, tmp_path):
    daemon = start(**{"state.interval": 0.01})
    feed(daemon, b"one", rows, 0, 21)
    assert daemon.ask("snapshot")["ok"]
    daemon.kill()
    for path in (tmp_path / "one").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    daemon.start()
    for answer in daemon.ask("export", stream=b"one"), daemon.ask("fork", stream=b"one", to=b"two"):
        assert not answer["ok"] and answer["code"] == "state_damaged"


def test_what_is_refused(start, rows, tmp_path):
    daemon, other = start(), start("other", window=4)
    feed(daemon, b"there", rows, 0, 21)
    ctl(daemon, "export", "there", tmp_path / "state")
    assert "of window 8, the window here is 4" in ctl(other, "import", tmp_path / "state", status=4)
    for command in (("export", "nowhere", tmp_path / "none"), ("fork", "nowhere", "new"), ("snapshot", "nowhere"),
                    ("reset", "nowhere"), ("close", "nowhere")):
        assert "refused (closed)" in ctl(daemon, *command, status=4)
    assert not (tmp_path / "none").exists()
    assert b"new" not in [stream["stream"] for stream in daemon.ask("streams")["streams"]]


# --- the Python client -----------------------------------------------------------------------------------------------

@pytest.fixture
def client(start):
    """A client of a daemon."""
    daemon = start()
    with Client(daemon.ingest, control=daemon.control, context=daemon.context) as client:
        yield client


def hugging_face_caches(case):
    """{layer: (conv_state [conv_dim, conv_kernel], ssm_state)} after all rows of a golden case."""
    tensors = load_safetensors(os.path.join(Golden(case).folder, "golden.safetensors"))
    return {i: (tensors[f"layers.{i}.conv_state"][0], tensors[f"layers.{i}.ssm_state"][0]) for i in Golden(case).layers}


def test_arrays_out_and_in(client, rows, want):
    client.encode("arrays", rows[:21])
    state = client.export_state("arrays")
    assert (state["position"], state["emitted"], state["epoch"], state["window"]) == (16, 21, 0, WINDOW)
    assert same_bytes(state["pending"], rows[16:21])
    assert client.import_state("copy", state) == (0, 21)
    assert same_bytes(client.encode("copy", rows[21:60]), want[21:60])
    assert client.import_state("copy", state) == (1, 21)
    assert same_bytes(client.encode("copy", rows[21:60], epoch=1), want[21:60])
    for change, code in (({"window": 4}, "state_damaged"), ({"model": "another"}, "state_damaged"),
                         ({"layers.0.ssm_state": np.zeros(3)}, "state_damaged")):
        with pytest.raises(Refused, match=code):
            client.import_state("bad", {**state, **change})


def test_an_initial_state(client, rows):
    """Zeros are where every stream begins; anything else makes a difference from the first row on."""
    client.encode("none", rows[:8])
    zeros = {name: np.zeros_like(array) for name, array in client.export_state("none").items()
             if name.startswith("layers.")}
    assert client.import_state("zeros", zeros) == (0, 0)
    assert same_bytes(client.encode("zeros", rows[:20]), client.encode("from nothing", rows[:20]))
    client.import_state("ones", {name: array + 1 for name, array in zeros.items()})
    assert relative_error(client.encode("ones", rows[:20])[0], client.encode("zeros again", rows[:20])[0]) > 0.01


def test_caches_that_transformers_made(client, golden):
    """The golden caches: ours after the same rows are the same, and a stream goes on from them as from ours."""
    rows = golden(CASE).rows
    caches = hugging_face_caches(CASE)
    client.encode("ours", rows)
    state = client.export_state("ours")
    for i, (conv_state, ssm_state) in caches.items():
        assert relative_error(state[f"layers.{i}.conv_state"], conv_state[:, 1:]) < 1e-5
        assert relative_error(state[f"layers.{i}.ssm_state"], ssm_state) < 1e-5
    theirs = {f"layers.{i}.{name}": array for i, (conv_state, ssm_state) in caches.items()
              for name, array in (("conv_state", conv_state[:, 1:]), ("ssm_state", ssm_state))}
    assert client.import_state("theirs", {**theirs, "position": len(rows)}) == (0, len(rows))
    assert relative_error(client.encode("theirs", rows[:30]), client.encode("ours", rows[:30])) < 1e-5


def layer_states(cache):
    """[(conv_states, ssm_states)] by layer, as tensors [1, ...]; where they are depends on the version."""
    if not hasattr(cache, "layers"):
        return list(zip(cache.conv_states, cache.ssm_states))
    first = lambda states: states if hasattr(states, "shape") else states[0]
    return [(first(layer.conv_states), first(layer.recurrent_states)) for layer in cache.layers]


def test_with_transformers(client, golden):
    """Half of the rows there, the other half here, and the other way round."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = golden(CASE)
    half, n = 32, len(case.rows)
    rows = torch.tensor(case.rows[None])
    model = transformers.AutoModel.from_pretrained(case.folder, dtype=torch.float32).eval()

    with torch.no_grad():
        cache = model(inputs_embeds=rows[:, :half], use_cache=True).cache_params
        state = {"position": half}
        for i, (conv_states, ssm_states) in enumerate(layer_states(cache)):
            state[f"layers.{i}.conv_state"] = conv_states[0, :, 1:].numpy()
            state[f"layers.{i}.ssm_state"] = ssm_states[0].numpy()
        client.import_state("from there", state)
        got = client.encode("from there", case.rows[half:])
        assert relative_error(got, case.hidden["final"][half:]) < 1e-5

        client.encode("to there", case.rows[:half])
        state = client.export_state("to there")
        for i, (conv_states, ssm_states) in enumerate(layer_states(cache)):
            conv_state = np.pad(state[f"layers.{i}.conv_state"], ((0, 0), (1, 0)), constant_values=np.nan)
            conv_states.copy_(torch.tensor(conv_state[None]))
            ssm_states.copy_(torch.tensor(state[f"layers.{i}.ssm_state"][None]))
        got = [model(inputs_embeds=rows[:, i:i + 1], cache_params=cache, use_cache=True).last_hidden_state[0].numpy()
               for i in range(half, n)]
        assert relative_error(np.concatenate(got), case.hidden["final"][half:]) < 1e-5
