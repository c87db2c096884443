"""The programs are built with what compiler and linker have against exploits; not so with sanitizers."""
import subprocess

import pytest

from harness import MAMBA2CTL, MAMBA2D

pytestmark = pytest.mark.native


def readelf(option, program):
    return subprocess.run(["readelf", "-W", option, program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("program", [MAMBA2D, MAMBA2CTL])
def test_hardening(program):
    segments = readelf("-l", program)
    assert "GNU_RELRO" in segments and "BIND_NOW" in readelf("-d", program)
    assert "Type:                              DYN (Position-Independent Executable" in readelf("-h", program)
    assert "RWE" not in segments, "no memory is both writable and executable"
    symbols = readelf("--dyn-syms", program)
    assert "__stack_chk_fail" in symbols
    assert "__memcpy_chk" in symbols or "__snprintf_chk" in symbols, "_FORTIFY_SOURCE"
