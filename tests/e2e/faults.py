"""Disks that fail and clocks that jump: by libraries preloaded into the daemon; and small file systems that fill."""
import errno
import mmap
import os
import shutil
import struct
import subprocess

import pytest

from harness import TESTS

WRITING = "owdcns"  # the calls without which no state is written
REMOVING = "u"
READING = "or"
NAMES = {"o": "openat", "w": "write", "d": "fdatasync", "c": "close", "n": "renameat", "s": "fsync", "u": "unlinkat",
         "r": "read"}


def library(name, scratch):
    """The path of a library to preload into a daemon, made of the source of that name beside this file."""
    compiler, path = shutil.which(os.environ.get("CC", "cc")), scratch / f"{name}.so"
    if not compiler:
        pytest.skip("no C compiler")
    if not path.exists():
        source = os.path.join(TESTS, "e2e", f"{name}.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    return str(path)


class Faults:
    """What is to fail in one folder, of the daemons that are started from now on: see faultfs.c."""

    HEAD = struct.Struct("16sIIiI")

    def __init__(self, daemon, scratch):
        os.makedirs(daemon.settings["state.dir"], exist_ok=True)
        path = scratch / "plan"
        with open(path, "w+b") as file:
            file.truncate(self.HEAD.size + 4096)
            self.plan = mmap.mmap(file.fileno(), 0)
        daemon.environment.update(LD_PRELOAD=library("faultfs", scratch), MAMBA2D_FAULT_PLAN=str(path),
                                  MAMBA2D_FAULT_DIR=daemon.settings["state.dir"])

    def arm(self, counted, first=0, n=0, error=errno.EIO):
        """Of the calls in counted, from now on, n from the first on fail; error 0: writes are short; -1: they wait."""
        self.HEAD.pack_into(self.plan, 0, b"", 0, 0, 0, 0)  # nothing is counted while this changes
        self.HEAD.pack_into(self.plan, 0, counted.encode(), first, n, error, 0)

    def heal(self):
        self.arm("")

    def calls(self):
        """The letters of the calls that were counted, in order."""
        n = self.HEAD.unpack_from(self.plan)[-1]
        return self.plan[self.HEAD.size:self.HEAD.size + n].decode()

    def happened(self):
        """Has a call failed?"""
        return self.HEAD.unpack_from(self.plan)[-1] > self.HEAD.unpack_from(self.plan)[1]


class Clock:
    """The wall clock of the daemons that are started from now on, which jumps as a test wants: see clockshift.c."""

    def __init__(self, daemon, scratch):
        path = scratch / "clock"
        path.write_bytes(bytes(16))
        with open(path, "r+b") as file:
            self.plan = mmap.mmap(file.fileno(), 0)
        daemon.environment.update(LD_PRELOAD=library("clockshift", scratch), MAMBA2D_CLOCK=str(path))

    def jump(self, seconds):
        """From now on it is so far from the true one."""
        struct.pack_into("=q", self.plan, 0, int(seconds))

    def readings(self):
        """How often the daemon has looked at it."""
        return struct.unpack_from("=Q", self.plan, 8)[0]


class SmallDisk:
    """A file system of its own, with so many bytes, in a mount namespace that daemons can be started in."""

    def __init__(self, folder, n_bytes):
        self.folder = folder
        folder.mkdir()
        script = f'mount -t tmpfs -o size={n_bytes} tmpfs "$0" && echo there && exec cat'
        self.holder = subprocess.Popen(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, folder],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b"there\n":
            self.close()
            pytest.skip("no mount namespaces here")
        self.enter = ["nsenter", "--target", str(self.holder.pid), "--user", "--mount", "--preserve-credentials"]

    def close(self):
        self.holder.stdin.close()
        self.holder.stdout.close()
        self.holder.wait()

    def run(self, *words):
        return subprocess.run([*self.enter, *map(str, words)], capture_output=True, text=True).returncode == 0

    def fill(self):
        """Write until it is full."""
        assert not self.run("dd", "if=/dev/zero", f"of={self.folder}/filler", "bs=512", "oflag=append", "conv=notrunc")

    def make_room(self):
        assert self.run("rm", f"{self.folder}/filler")

    def remount(self, how):
        """rw or ro; the latter works only while no file is being written."""
        while not self.run("mount", "-o", f"remount,{how}", self.folder):
            pass

    def names(self):
        listed = subprocess.run([*self.enter, "ls", "-R", str(self.folder)], capture_output=True, text=True, check=True)
        return listed.stdout.split("\n")
