"""The ECG example, as its README runs it: the prediction errors through the daemon equal the one-shot ones."""
import os
import subprocess
import sys

import numpy as np
import pytest

from harness import ROOT, TIMEOUT, Daemon, Relay

ECG = os.path.join(ROOT, "etc", "examples", "ecg")
PATHS = [os.path.join(ROOT, "protocol", "python"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PATHS)), "MPLCONFIGDIR": "/tmp"}


def script(name, *arguments):
    return subprocess.Popen([sys.executable, os.path.join(ECG, name), *arguments], env=ENVIRONMENT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=2 * TIMEOUT)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("lane", ["ingest", "publisher binds"])
def test_prediction_errors_and_picture(tmp_path, short_path, lane):
    pub, relayed = f"ipc://{short_path}/pub", f"ipc://{short_path}/relayed"
    daemon = Daemon(ECG, window=45, **({} if lane == "ingest" else {"sockets.subscribe": ">" + pub}))
    try:
        relay = Relay(daemon, b"ecg", relayed)
        consumer = script("consume.py", "--publish", relayed, "--out", tmp_path, "--check",
                          os.path.join(ECG, "prediction_error.npy"))
        relay.wait()
        where = ["--ingest", daemon.ingest] if lane == "ingest" else ["--pub", pub]
        publisher = script("publish.py", *where, "--speed", "0")
        relay.run(until=lambda frames: b"closed" in frames[1])
        finish(publisher)
        output = finish(consumer)
    finally:
        daemon.close()
    assert "largest difference" in output
    error = np.load(tmp_path / "prediction_error.npy")
    assert np.abs(error - np.load(os.path.join(ECG, "prediction_error.npy"))).max() <= 1e-4
    assert np.load(tmp_path / "hidden_states.npy").shape == (13500, 64)
    assert (tmp_path / "ecg.png").read_bytes().startswith(b"\x89PNG")
