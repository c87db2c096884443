"""Two network namespaces and a bad line between them, for whoever may make such (root).

Each namespace has one TUN device.  A process carries IP packets from one to the other, and loses, delays, doubles or
holds back what Conditions say: so the kernels at both ends have packets to send again, as over a bad network.
"""
import collections
import ctypes
import fcntl
import heapq
import multiprocessing
import os
import random
import select
import socket
import struct
import threading
import time
from typing import NamedTuple

NEAR, FAR = 0, 1  # the ends
ADDRESSES = "10.77.0.1", "10.77.0.2"
NETMASK = "255.255.255.0"

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454ca, 0x1, 0x1000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891c
IFF_UP, IFF_RUNNING = 0x1, 0x40
MTU = 1500
AT_ONCE = 64  # packets read from one end before the other has its turn

libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """There can be no link on this machine, and why."""


class Conditions(NamedTuple):
    """What becomes of a packet; shares are of 1, times are seconds."""
    loss: float = 0        # share that is lost
    delay: float = 0       # of each packet,
    jitter: float = 0      # more or less by up to this: packets overtake each other
    reorder: float = 0     # share that is held back, while those behind it pass,
    held: float = 0.02     # for so long
    duplicate: float = 0   # share that arrives twice
    blocked: tuple = ()    # ends from which nothing leaves: a partition


def check(status):
    if status < 0:
        raise Unavailable(os.strerror(ctypes.get_errno()))


def open_tun(address):
    """A TUN device in this thread's namespace, up and with an address: its descriptor."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = struct.pack("16s", b"link")
    fcntl.ioctl(tun, TUNSETIFF, name + struct.pack("H22x", IFF_TUN | IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for request, value in (SIOCSIFADDR, address), (SIOCSIFNETMASK, NETMASK):
            fcntl.ioctl(s, request, name + struct.pack("HH4s16x", socket.AF_INET, 0, socket.inet_aton(value)))
        fcntl.ioctl(s, SIOCSIFFLAGS, name + struct.pack("H22x", IFF_UP | IFF_RUNNING))
    return tun


def new_namespace(address):
    """A network namespace with a TUN device of this address: the descriptors of both."""
    made = []

    def make():  # in a thread that ends: namespaces belong to threads
        try:
            check(libc.unshare(CLONE_NEWNET))
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            made.extend((namespace, open_tun(address)))
        except (OSError, Unavailable) as error:
            made.append(error)
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[-1], Exception):
        raise Unavailable(f"no network namespaces with TUN devices here: {made[-1]}")
    return made


class Carrier:
    """Carries packets between two TUN devices, until the pipe that brings new conditions is closed."""

    def __init__(self, tuns, pipe, seed):
        self.tuns, self.pipe, self.random = tuns, pipe, random.Random(seed)
        self.conditions, self.counts = Conditions(), collections.Counter()
        self.due, self.number = [], 0  # a heap of (when, number, end to write to, packet)

    def run(self):
        while True:
            wait = max(0.0, self.due[0][0] - time.monotonic()) if self.due else None
            ready = select.select([*self.tuns, self.pipe], [], [], wait)[0]
            if self.pipe in ready:
                try:
                    self.conditions = self.pipe.recv()
                except EOFError:
                    return
                self.pipe.send(self.counts)
                self.counts = collections.Counter()
            for end, tun in enumerate(self.tuns):
                if tun in ready:
                    self.read(end)
            while self.due and self.due[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self.due)
                os.write(self.tuns[end], packet)

    def read(self, end):
        try:
            for _ in range(AT_ONCE):
                self.take(end, os.read(self.tuns[end], MTU))
        except BlockingIOError:
            pass

    def take(self, end, packet):
        """Decide what becomes of a packet from one end."""
        c = self.conditions
        self.counts["packets"] += 1
        if end in c.blocked or self.random.random() < c.loss:
            self.counts["lost"] += 1
            return
        copies = 1 + (self.random.random() < c.duplicate)
        self.counts["doubled"] += copies - 1
        for _ in range(copies):
            when = time.monotonic() + c.delay + self.random.uniform(-c.jitter, c.jitter)
            if self.random.random() < c.reorder:
                self.counts["held back"] += 1
                when += c.held
            self.number += 1
            heapq.heappush(self.due, (when, self.number, 1 - end, packet))


class Link:
    """The line and its two ends; raises Unavailable where there can be none."""

    def __init__(self, seed=0):
        self.namespaces, tuns = zip(*map(new_namespace, ADDRESSES))
        self.pipe, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self._carry, args=(tuns, theirs, seed), daemon=True)
        self.process.start()
        theirs.close()
        for tun in tuns:
            os.close(tun)

    def _carry(self, tuns, pipe, seed):
        self.pipe.close()
        Carrier(tuns, pipe, seed).run()

    def set(self, conditions):
        """New conditions; returns what became of the packets under those before: a Counter."""
        self.pipe.send(conditions)
        return self.pipe.recv()

    def enter(self, end):
        """Let the calling thread, and the threads that it will start, make their sockets at this end."""
        check(libc.setns(self.namespaces[end], CLONE_NEWNET))

    def prefix(self, end):
        """What to write in front of a command to run it at this end, as long as this process lives."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.namespaces[end]}"]

    def close(self):
        self.pipe.close()
        self.process.join()
        for namespace in self.namespaces:
            os.close(namespace)
