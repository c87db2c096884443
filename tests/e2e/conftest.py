"""Fixtures: daemons that are ended, and must end well, with the test or the file of tests that started them."""
import functools
import os
import random as randomness
import tempfile

import pytest

import harness

SEED = int(os.environ.get("MAMBA2D_SEED", randomness.randrange(1 << 30)))


class Daemons:
    """Starts daemons; those with equal settings are started once."""

    def __init__(self):
        self.running = {}

    def __call__(self, case, **settings):
        key = repr((case, sorted(settings.items())))
        if key not in self.running:
            self.running[key] = harness.Daemon(harness.Golden(case).folder, **settings)
        return self.running[key]

    def close(self):
        daemons, self.running = self.running, {}
        for daemon in daemons.values():
            daemon.close()


@pytest.fixture
def daemons():
    """Start daemons for one test: daemons("seed-46032", window=8) -> harness.Daemon."""
    factory = Daemons()
    yield factory
    factory.close()


@pytest.fixture(scope="module")
def shared_daemons():
    """Like daemons, but they live for all tests of the file: use streams of your own."""
    factory = Daemons()
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def golden():
    """golden(case) -> harness.Golden, read once."""
    return functools.lru_cache(None)(harness.Golden)


@pytest.fixture
def random():
    """Other numbers in each run; MAMBA2D_SEED repeats one."""
    print("MAMBA2D_SEED =", SEED)
    return randomness.Random(SEED)


@pytest.fixture
def short_path():
    """A folder for ipc sockets, whose paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="mamba2d-") as folder:
        yield folder


@pytest.fixture(scope="module")
def rows(request, golden):
    """Rows for the module's CASE that do not repeat themselves."""
    return harness.varied(golden(request.module.CASE).rows, 60)


@pytest.fixture(scope="module")
def want(request, shared_daemons, rows):
    """Their hidden states, from an undisturbed daemon with the module's WINDOW."""
    return harness.Peer(shared_daemons(request.module.CASE, window=request.module.WINDOW)).encode(rows)
