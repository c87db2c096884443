"""The documents say what the programs do: manual pages against the programs and PROTOCOL.md, guides by running them."""
import glob
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from harness import BUILD, MAMBA2CTL, MAMBA2D, ROOT, TIMEOUT, Daemon

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


# --- guides ----------------------------------------------------------------------------------------------------------

DOC = os.path.join(ROOT, "etc/doc")
ECG = os.path.join(ROOT, "etc/examples/ecg")


def read(*path):
    with open(os.path.join(ROOT, *path)) as f:
        return f.read()


def examples(language, path="etc/doc/clients.md"):
    return re.findall(rf"^```{language}\n(.*?)^```", read(path), re.MULTILINE | re.DOTALL)


def test_links_lead_somewhere():
    for path in ["README.md", "HACKING.md", *(os.path.join("etc/doc", name) for name in os.listdir(DOC))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", read(path)):
            assert os.path.exists(os.path.join(ROOT, os.path.dirname(path), target)), (path, target)


def test_every_error_code_is_explained():
    """Those of the C table, of PROTOCOL.md's and of the guide are the same, in the same order."""
    codes = re.findall(r'"([a-z_]+)"', read("protocol/refusal.c").split("names[REFUSAL_COUNT]")[1].split("};")[0])
    table = read("protocol/PROTOCOL.md").split("| code | what was refused |")[1].split("\n\n")[0]
    assert len(codes) > 10
    assert re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE) == codes
    assert re.findall(r"^### `([a-z_]+)`\n[\w`]", read(DOC, "troubleshooting.md"), re.MULTILINE) == codes


def test_the_sizing_table_is_computed():
    rows = re.findall(r"^\| ([\w.-]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| [\d.]+ \|$",
                      read(DOC, "operations.md"), re.MULTILINE)
    shapes = read("model/shape.c").split("published[] = {")[1].split("};")[0]
    assert [row[0] for row in rows] == re.findall(r'\{ "([\w.-]+)"', shapes)
    for name, *numbers in rows:
        layers, hidden_size, groups, cache, streams = map(int, numbers)
        assert re.search(rf'\{{ "{re.escape(name)}", {layers}, {hidden_size}, {groups}, ', shapes), name
        d_inner, state_size, conv_kernel = 2 * hidden_size, 128, 4
        conv_dim = d_inner + 2 * groups * state_size
        assert cache == 4 * layers * (conv_dim * (conv_kernel - 1) + d_inner * state_size)
        assert streams == 2 ** 30 // cache


def test_the_operations_guide_knows_metrics_and_alerts():
    """Every alert is explained, and every metric that is named there exists."""
    guide = read(DOC, "operations.md")
    alerts = re.findall(r"- alert: (\w+)", read("etc/mamba2d-alerts.yml"))
    assert len(alerts) > 5 and re.findall(r"^- \*\*(Mamba2d\w+)\*\*:", guide, re.MULTILINE) == alerts
    assert set(re.findall(r"mamba2d_\w+", guide)) <= set(re.findall(r"mamba2d_\w+", read("daemon/metrics.c")))


@pytest.fixture(scope="module")
def ecg():
    daemon = Daemon(ECG)
    yield daemon
    daemon.close()


def here(example, daemon):
    """An example with the addresses of the test's daemon."""
    return example.replace("tcp://127.0.0.1:5701", daemon.ingest).replace("tcp://127.0.0.1:5702", daemon.publish)


def run_python(ecg, example):
    environment = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "protocol/python")}
    result = subprocess.run([sys.executable, "-c", here(example, ecg)], env=environment, capture_output=True, text=True,
                            timeout=TIMEOUT)
    assert result.returncode == 0 and result.stdout, result
    return result.stdout


@pytest.mark.parametrize("example", examples("python"))
def test_python_examples(ecg, example):
    run_python(ecg, example)


@pytest.mark.native  # it waits for 5 seconds
def test_the_example_of_the_readme(ecg):
    example, = examples("python", "README.md")
    assert run_python(ecg, example).split("\n")[-2] == "b'sensor-8' 1000 Event"


def compile_and_run(ecg, folder, command):
    """The C example, with the guide's command in that folder."""
    example, = examples("c")
    (folder / "producer.c").write_text(here(example, ecg))
    subprocess.run(["sh", "-c", f"{command} -Wall -Wextra -Werror"], cwd=folder, check=True)
    assert subprocess.run([folder / "producer"], capture_output=True, text=True, timeout=TIMEOUT).stdout == \
        "45 rows are done\n"


@pytest.mark.native
def test_the_c_example_in_a_build_folder(ecg, tmp_path):
    build = tmp_path / "build"
    build.mkdir()
    for name in "protocol", "model":
        (tmp_path / name).symlink_to(os.path.join(ROOT, name))
        (build / f"lib{name}.a").symlink_to(os.path.join(BUILD, f"lib{name}.a"))
    compile_and_run(ecg, build, examples("sh")[0].strip())


@pytest.mark.native
def test_the_c_example_in_a_tree_of_its_own(ecg, tmp_path):
    """With the files that the guide names and no others."""
    paragraph = read(DOC, "clients.md").split("In a tree of your own, ")[1].split("```")[0]
    for pattern in re.findall("`(.*?)`", paragraph):
        for path in glob.glob(pattern, root_dir=ROOT):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            shutil.copy(os.path.join(ROOT, path), tmp_path / path)
    compile_and_run(ecg, tmp_path, examples("sh")[1].strip())
