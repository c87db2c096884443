"""The command line and the configuration file: strict, and explained by --print-config."""
import os
import pty
import subprocess

import pytest
import yaml

from harness import MAMBA2D, Golden

MODEL = Golden("seed-46032").folder


def mamba2d(*arguments):
    return subprocess.run([MAMBA2D, *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def config(tmp_path):
    """Write a configuration file and return its path."""
    def write(text):
        path = tmp_path / "mamba2d.yaml"
        path.write_text(text)
        return str(path)
    return write


def test_version_and_help():
    version, help_ = mamba2d("--version"), mamba2d("--help")
    assert version.returncode == 0 and version.stdout.startswith("mamba2d ")
    assert help_.returncode == 0
    for option in ("-c", "-s", "--check", "--print-config", "--version"):
        assert option in help_.stdout


def test_every_key_is_printed_with_a_comment():
    text = mamba2d("--print-config").stdout
    keys = {
        None: ["model", "device", "precision", "threads", "window", "shutdown_timeout"],
        "output": ["dtype", "rows", "layers"],
        "sockets": ["ingest", "subscribe", "publish", "control"],
        "streams": ["max", "idle_timeout", "on_gap", "flush_after"],
        "limits": ["message_bytes", "credit_rows", "batch_rows", "cache_bytes"],
        "log": ["level"],
    }
    printed = yaml.safe_load(text)
    for section, names in keys.items():
        assert set(names) <= set(printed[section] if section else printed)
    lines = [line for line in text.splitlines() if line.strip()]
    for comment, line in zip(lines, lines[1:]):
        if not line.strip().startswith("#") and not line.endswith(":"):
            assert comment.strip().startswith("# ") and "Default: " in comment, line


def test_print_config_round_trip(config):
    """What it prints is what it reads: defaults, and values of every kind."""
    settings = ["model=" + MODEL, "device=cpu", "precision=float32", "threads=2", "window=17", "output.dtype=bfloat16",
                "output.rows=last", "output.layers=[0, final]",
                'sockets.ingest=["ipc:///tmp/a b", "tcp://127.0.0.1:*"]',
                'sockets.subscribe=[">tcp://127.0.0.1:1", "@ipc:///tmp/x"]',
                "streams.max=5", "streams.idle_timeout=0.25", "streams.on_gap=skip",
                "streams.flush_after=1.5", "limits.message_bytes=4096", "limits.credit_rows=99",
                "limits.batch_rows=34", "limits.cache_bytes=123456789012", "log.level=warning", "shutdown_timeout=2"]
    for overrides in ([], [word for s in settings for word in ("-s", s)]):
        first = mamba2d("--print-config", *overrides)
        assert first.returncode == 0, first.stderr
        path = config(first.stdout)
        assert mamba2d("-c", path, "--print-config").stdout == first.stdout
    printed = yaml.safe_load(first.stdout)
    assert printed["window"] == 17
    assert printed["output"] == {"dtype": "bfloat16", "rows": "last", "layers": [0, "final"]}
    assert printed["sockets"]["subscribe"] == [">tcp://127.0.0.1:1", "@ipc:///tmp/x"]
    assert printed["streams"] == {"max": 5, "idle_timeout": 0.25, "on_gap": "skip", "flush_after": 1.5}
    assert mamba2d("-c", path, "--check").returncode == 0


def test_later_settings_win_over_the_file(config):
    path = config("window: 5\nlimits:\n  credit_rows: 7\n")
    result = mamba2d("-c", path, "-s", "window=6", "-s", "window=9", "--print-config")
    printed = yaml.safe_load(result.stdout)
    assert (printed["window"], printed["limits"]["credit_rows"]) == (9, 7)


BAD_FILES = {
    # name: (file, line, column, a word of the message)
    "unknown key": ("window: 8\nwindwo: 8\n", 2, 1, "windwo"),
    "unknown key in a section": ("output:\n  dtype: float32\n  colour: red\n", 3, 3, "colour"),
    "unknown section": ("outputs:\n  dtype: float32\n", 1, 1, "outputs"),
    "text for a number": ("window: eight\n", 1, 9, "window"),
    "float for a number": ("window: 8.5\n", 1, 9, "window"),
    "zero rows": ("window: 0\n", 1, 9, "window"),
    "below zero": ("streams:\n    max: -1\n", 2, 10, "max"),
    "too big": ("threads: 99999999999999999999\n", 1, 10, "threads"),
    "bad choice": ("\n\noutput:\n  dtype: float64\n", 4, 10, "float64"),
    "bad choice of precision": ("precision:   fp8\n", 1, 14, "fp8"),
    "bad layer": ("output:\n  layers: [final, -1]\n", 2, 19, "-1"),
    "bad layer name": ("output:\n  layers: [first]\n", 2, 12, "first"),
    "seconds as text": ("shutdown_timeout: soon\n", 1, 19, "shutdown_timeout"),
    "negative seconds": ("streams:\n  flush_after: -0.1\n", 2, 16, "flush_after"),
    "NaN seconds": ("streams:\n  idle_timeout: .nan\n", 2, 17, "idle_timeout"),
    "list for a number": ("window: [8]\n", 1, 9, "window"),
    "map for a number": ("window:\n  rows: 8\n", 2, 3, "window"),
    "number for a section": ("output: 8\n", 1, 9, "output"),
    "list in a list": ("sockets:\n  ingest: [[a]]\n", 2, 12, "ingest"),
    "same key twice": ("window: 8\nwindow: 9\n", 2, 1, "window"),
    "a list as document": ("- window\n", 1, 1, ""),
    "not YAML": ("window: 8\n  model: x\n", 2, 8, ""),
    "not closed": ("output: {dtype: float32\n", 2, 1, ""),
    "two documents": ("window: 8\n---\nwindow: 9\n", 2, 1, ""),
    "metrics without a host": ("metrics: {listen: 9464}\n", 1, 19, "HOST:PORT"),
    "an address without a port": ("sockets:\n  ingest: [tcp://127.0.0.1]\n", 2, 11, "a port"),
    "open to the world": ("sockets: {publish: tcp://0.0.0.0:5702}\n", 1, 20, "security.secret_key"),
    "less than a window": ("window: 8\nlimits: {batch_rows: 3}\n", 2, 22, "window of 8"),
    "a layer twice": ("output: {layers: [1, 1]}\n", 1, 18, "twice"),
    "a layer that the model lacks": ("output:\n  layers: [2]\n", 2, 11, "the model has 2 layers"),
    "a key file that is not there": ("security: {secret_key: /no/key,\n  authorized_keys: /no}\n", 1, 24, "/no/key"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_errors_in_a_file_have_line_and_column(config, name):
    text, line, column, word = BAD_FILES[name]
    path = config(text)
    result = mamba2d("-c", path, "-s", f"model={MODEL}", "--check")
    assert result.returncode not in (0, -6, -11)
    assert f"{path}:{line}:{column}: " in result.stderr, result.stderr
    assert word in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, "said once"


@pytest.mark.parametrize("assignment", [
    "windwo=8", "window", "window=", "window=eight", "output=8", "=8", "streams.max=0", "output.dtype=int8",
    "output.layers=[]", "window.x=3", "sockets.ingest={a: b}", "window=[", "precision=fp8", "limits.batch_rows=0",
    "limits.cache_bytes=all", "log.level=loud", "device=[]", "sockets.ingest=[]", "limits.batch_rows=8",
    "limits.credit_rows=8", "output.layers=[0, final, 0]", "sockets.ingest=tcp://127.0.0.1:65536",
    "sockets.ingest=tcp://127.0.0.1", "sockets.ingest=tcp://127.0.0.1:0", "device=cudda", "device=[cpu, cuda:x]"])
def test_errors_on_the_command_line_name_the_key(assignment):
    result = mamba2d("-s", f"model={MODEL}", "-s", assignment, "--check")
    assert result.returncode not in (0, -6, -11)
    assert assignment.split("=")[0] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_check_opens_the_checkpoint(config, tmp_path):
    assert mamba2d("-s", f"model={MODEL}", "--check").returncode == 0
    missing = mamba2d("-s", f"model={tmp_path}", "--check")
    assert missing.returncode != 0 and "config.json" in missing.stderr
    assert mamba2d("--check").returncode != 0, "a model is needed"
    beyond = mamba2d("-s", f"model={MODEL}", "-s", "output.layers=[99]", "--check")
    assert beyond.returncode != 0 and "-s output.layers: 99, expected" in beyond.stderr
    path = config(f"window: 8\nmodel: {tmp_path}/no\n")
    assert f"{path}:2:8: model: {tmp_path}/no/config.json: No such file" in mamba2d("-c", path, "--check").stderr


def test_a_file_that_cannot_be_read(tmp_path):
    result = mamba2d("-c", str(tmp_path / "none.yaml"), "--check")
    assert result.returncode != 0 and "none.yaml" in result.stderr


def test_what_is_said_on_a_terminal(tmp_path):
    """A line, whatever is in it, and without the numbers that are for the journal."""
    master, slave = pty.openpty()
    status = subprocess.run([MAMBA2D, "-c", "/no\x1bwhere"], stderr=slave, timeout=60).returncode
    os.close(slave)
    said = os.read(master, 65536).decode()
    os.close(master)
    assert status == 1 and "/no?where" in said and "<3>" not in said and said.count("\n") == 1


def test_no_folder_for_the_control_socket(tmp_path):
    result = subprocess.run([MAMBA2D, "-s", f"model={MODEL}", "-s", "device=cpu"], capture_output=True, text=True,
                            env={"RUNTIME_DIRECTORY": str(tmp_path / "no" / "folder")}, timeout=60)
    assert result.returncode == 1 and f"{tmp_path}/no/folder: cannot be made" in result.stderr


def test_an_address_that_cannot_be_bound_is_named(short_path):
    result = mamba2d("-s", f"model={MODEL}", "-s", "device=cpu", "-s", "sockets.ingest=ipc:///nowhere/at/all",
                     "-s", "sockets.publish=tcp://127.0.0.1:*", "-s", f"sockets.control=ipc://{short_path}/control")
    assert result.returncode not in (0, -6, -11)
    assert "ipc:///nowhere/at/all" in result.stderr


def test_unknown_options_and_arguments():
    for arguments in (["--colour"], ["-x"], ["model"], ["-c"], ["-s"]):
        result = mamba2d(*arguments)
        assert result.returncode not in (0, -6, -11)
        assert result.stderr
