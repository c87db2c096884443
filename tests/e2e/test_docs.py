"""The documents say what the programs do: manual pages against --help, --print-config and PROTOCOL.md."""
import os
import re
import subprocess

import pytest
import yaml

from harness import BUILD, MAMBA2CTL, MAMBA2D, ROOT

PAGES = {"mamba2d.8": ROOT, "mamba2ctl.1": ROOT, "mamba2d.yaml.5": BUILD, "mamba2d-protocol.7": BUILD}


def page(name):
    return os.path.join(PAGES[name], "etc/man", name)


def text_of(name):
    """A manual page as people read it, on one line."""
    shown = subprocess.run(["mandoc", "-Tutf8", "-Owidth=1000", page(name)], capture_output=True, text=True, check=True)
    return " ".join(re.sub(r".\x08", "", shown.stdout).split())


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_no_warnings(name):
    lint = subprocess.run(["mandoc", "-Tlint", "-Wwarning", page(name)], capture_output=True, text=True)
    assert (lint.returncode, lint.stdout) == (0, "")
    roff = subprocess.run(["man", "--warnings", "-l", "-Tutf8", "-Z", page(name)], capture_output=True, text=True)
    assert (roff.returncode, roff.stderr) == (0, "")


@pytest.mark.parametrize("program, name", [(MAMBA2D, "mamba2d.8"), (MAMBA2CTL, "mamba2ctl.1")])
def test_options_are_those_of_help(program, name):
    """Each option that one of them names, the other names too."""
    option = r"(?<![\w-])--?[a-z][a-z-]*"
    in_page, in_help = (set(re.findall(option, text)) - {"--help", "--version"}
                        for text in (text_of(name).split("EXAMPLES")[0], output(program, "--help")))
    assert in_page == in_help


def test_commands_are_those_of_help():
    commands = set(re.findall(r"^  ([a-z]+)\b", output(MAMBA2CTL, "--help").split("Exit status")[0], re.MULTILINE))
    with open(page("mamba2ctl.1")) as source:
        described = set(re.findall(r"^\.It (?:Xo )?Ic ([a-z]+)", source.read(), re.MULTILINE))
    assert commands == described


def test_keys_are_those_of_the_program():
    """With their meanings and defaults, in order."""
    printed = output(MAMBA2D, "--print-config")
    keys = [f"{section}.{key}" for section, value in yaml.safe_load(printed).items()
            for key in (value if isinstance(value, dict) else [""])]
    meanings = re.findall(r"# (.*)\. Default: (.*)", printed)
    assert len(keys) == len(meanings) > 20
    text, at = text_of("mamba2d.yaml.5"), 0
    for key, (meaning, default) in zip(keys, meanings):
        entry = f"{key.rstrip('.')} {meaning}. " + ("No default." if default == "none" else f"Default: {default} ")
        at = text.find(" ".join(entry.split()), at)
        assert at > 0, entry


def test_the_protocol_is_whole():
    """Every word of PROTOCOL.md is in mamba2d-protocol(7), in order."""
    with open(os.path.join(ROOT, "protocol/PROTOCOL.md")) as source:
        markdown = source.read().split("\n", 1)[1]
    words = re.findall(r"\w+", re.sub(r"^\|(?:[^|\n]*\|)+\n\|[-|]+\|$", "", markdown, flags=re.MULTILINE))
    shown = iter(re.findall(r"\w+", text_of("mamba2d-protocol.7")))
    for i, word in enumerate(words):
        assert any(word.lower() == w.lower() for w in shown), "not there: " + " ".join(words[max(0, i - 8):i + 1])
