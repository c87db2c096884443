"""What the end-to-end tests are made of: a real daemon, and peers that speak PROTOCOL.md with pyzmq and msgpack alone.

The peers do not use the Python client on purpose: they can say anything, and check what a client would forgive (order,
positions, repeats).
"""
import concurrent.futures
import contextlib
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time

import msgpack
import numpy as np
import zmq

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(TESTS)
BUILD = os.path.abspath(os.environ.get("MAMBA2D_BUILD", os.path.join(ROOT, "build")))
MAMBA2D, MAMBA2CTL = os.path.join(BUILD, "mamba2d"), os.path.join(BUILD, "mamba2ctl")
DEVICE = os.environ.get("MAMBA2D_DEVICE", "cpu")
TIMEOUT = 60.0  # seconds to wait for anything: long, because it only passes when a test fails
CASES = sorted(d for d in os.listdir(os.path.join(TESTS, "golden")) if not d.endswith(".md"))


# --- golden cases ----------------------------------------------------------------------------------------------------

def load_safetensors(path):
    """{name: array} of a file with float32 and int32 tensors."""
    dtypes = {"F32": np.float32, "I32": np.int32}
    with open(path, "rb") as f:
        (header_bytes,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(header_bytes))
        data = f.read()
    return {name: np.frombuffer(data[slice(*info["data_offsets"])], dtypes[info["dtype"]]).reshape(info["shape"])
            for name, info in header.items() if name != "__metadata__"}


class Golden:
    """A checkpoint with inputs [rows, hidden_size] and what transformers made of them."""

    def __init__(self, case):
        self.folder = os.path.join(TESTS, "golden", case)
        with open(os.path.join(self.folder, "config.json")) as f:
            config = json.load(f)
        tensors = load_safetensors(os.path.join(self.folder, "golden.safetensors"))
        self.rows = tensors["inputs_embeds"]
        self.tokens = tensors.get("input_ids")
        self.hidden_size, self.vocab_size = config["hidden_size"], config["vocab_size"]
        self.layers = list(range(config["num_hidden_layers"]))
        self.hidden = {"final": tensors["last_hidden_state"]}
        self.hidden.update({i: tensors[f"layers.{i}.hidden_state"] for i in self.layers})


def varied(rows, times):
    """rows so many times, scaled so that they are not periodic: [times * len(rows), hidden_size]."""
    rows = np.tile(rows, (times, 1))
    return rows * np.linspace(0.5, 2, len(rows), dtype=np.float32)[:, None]


def relative_error(got, want):
    return np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64))


def same_bytes(got, want):
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def to_bfloat16(array):
    """float32 to bfloat16 bits, to nearest even, as uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def exact_in_all(rows):
    """rows, rounded to what float32, float16 and bfloat16 all hold exactly."""
    return from_bfloat16(to_bfloat16(rows.astype(np.float16)))


@contextlib.contextmanager
def meanwhile(work):
    """Runs work(stop) in a thread of its own beside the block; that ends by setting stop, and fails if work did."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # waits for it: sockets are not closed under its hands
        result = pool.submit(work, stop)
        try:
            yield
        finally:
            stop.set()
        result.result()


# --- the daemon ------------------------------------------------------------------------------------------------------

def settings_arguments(settings):
    """{"streams.max": 2} -> ["-s", "streams.max=2"]; JSON is YAML, and paths are not parsed."""
    literal = ("model", "state.dir", "metrics.listen", "security.secret_key", "security.authorized_keys")
    return [word for key, value in settings.items()
            for word in ("-s", f"{key}={value if key in literal else json.dumps(value)}")]


class Daemon:
    """A mamba2d process with ipc sockets in a folder of its own; settings, by dotted key, override a file."""

    def __init__(self, model, start=True, config=None, **settings):
        self.folder = tempfile.mkdtemp(prefix="mamba2d-")
        self.ingest, self.publish, self.control = (f"ipc://{self.folder}/{name}" for name in ("in", "out", "ctl"))
        self.settings = {"model": model, "precision": "float32", "device": DEVICE, "log.level": "debug",
                         "limits.cache_bytes": 1 << 30,  # of a GPU that several daemons share
                         "sockets.ingest": self.ingest, "sockets.publish": self.publish,
                         "sockets.control": self.control, "metrics.listen": "", **settings}
        self.options = ["-c", config] if config else []
        self.log_path = os.path.join(self.folder, "log")
        self.context = zmq.Context()
        self.process = None
        self.environment = {}  # more variables, for the next start,
        self.prefix = []       # and a command that runs it
        if start:
            self.start()

    def start(self):
        with open(self.log_path, "ab") as log:
            command = [*self.prefix, MAMBA2D, *self.options, *settings_arguments(self.settings)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, **self.environment})
        try:
            self.ask("status")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def ask(self, cmd, **arguments):
        """One command to the control socket; returns the answer."""
        with self.context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self.control)
            socket.send(msgpack.packb({"v": 1, "cmd": cmd, **arguments}))
            deadline = time.monotonic() + TIMEOUT
            while not socket.poll(50):
                assert self.process.poll() is None, f"mamba2d ended with {self.process.returncode}:\n{self.log()}"
                assert time.monotonic() < deadline, f"no answer to {cmd}:\n{self.log()}"
            return msgpack.unpackb(socket.recv())

    def memory(self, which="VmHWM"):
        """Resident memory in bytes: the peak, or with VmRSS what it is now."""
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith(which))

    def descriptors(self):
        """How many are open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def terminate(self, with_signal=signal.SIGTERM):
        self.process.send_signal(with_signal)

    def wait(self):
        """The exit status."""
        return self.process.wait(TIMEOUT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        """End the daemon if it still runs, and say how it ended: 0 is right, a sanitizer's complaint is not."""
        status = 0
        if self.process and self.process.poll() is None:
            self.terminate()
            try:
                status = self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
                status = "no end after SIGTERM"
        self.context.destroy(0)
        log = self.log() if self.process else ""
        shutil.rmtree(self.folder)
        assert status == 0, f"mamba2d ended with {status}:\n{log}"
        return log


# --- peers -----------------------------------------------------------------------------------------------------------

class Message:
    """A message from the daemon: stream, header as attributes (None where absent), rows where it has a payload."""

    def __init__(self, frames):
        self.stream, header = frames[0], frames[1]
        self.header = msgpack.unpackb(header)
        self.rows = None
        assert self.header["v"] == 1 and len(header) <= 4096
        if self.header["type"] == "hidden":
            dtype = {"bfloat16": np.uint16}.get(self.dtype) or np.dtype(self.dtype)
            payload = frames[2] if len(frames) > 2 else b""
            assert len(payload) == np.prod(self.shape) * np.dtype(dtype).itemsize
            self.rows = np.frombuffer(payload, dtype).reshape(self.shape)

    def __getattr__(self, key):
        return self.header.get(key)

    def __repr__(self):
        return f"{self.stream!r} {self.header}"


class Receiver:
    """Reads from a socket; messages are taken by stream and type, in order."""

    def __init__(self, daemon, kind, keys=None):
        self.daemon = daemon
        self.socket = daemon.context.socket(kind)
        if keys:
            self.socket.curve_publickey, self.socket.curve_secretkey, self.socket.curve_serverkey = keys
        self.socket.setsockopt(zmq.LINGER, 0)
        self.inbox = []

    def close(self):
        self.socket.close(0)

    def receive(self, timeout=TIMEOUT):
        """The next message; None when none comes in time."""
        if not self.socket.poll(max(0, timeout) * 1000):  # a negative time-out would wait for ever
            return None
        return Message(self.socket.recv_multipart())

    def take(self, stream, *types):
        """The next message about stream of one of the types (any, without types)."""
        wanted = lambda m: m.stream == stream and (not types or m.type in types)
        for i, message in enumerate(self.inbox):
            if wanted(message):
                return self.inbox.pop(i)
        deadline = time.monotonic() + TIMEOUT
        while True:
            message = self.receive(deadline - time.monotonic())
            assert message, (f"no {types} about {stream!r} came; {len(self.inbox)} others did, the last of them "
                             f"{self.inbox[-5:]}\n{self.daemon.log()[-3000:]}")
            if wanted(message):
                return message
            self.inbox.append(message)

    def ack(self, stream, **reached):
        """The first ack in which each of the given counters has at least this value."""
        while True:
            message = self.take(stream, "ack")
            if all(message.header[key] >= value for key, value in reached.items()):
                return message

    def hidden(self, stream, start, stop, layers=(None,), epoch=0):
        """Hidden states of positions start to stop, which must come in order and each once, as an array, or as one
        for each layer where several are named."""
        parts = {layer: [] for layer in layers}
        reached = dict.fromkeys(layers, start)
        while min(reached.values()) < stop:
            message = self.take(stream, "hidden")
            assert (message.epoch, message.pos) == (epoch, reached[message.layer]), f"{message} after {reached}"
            parts[message.layer].append(message.rows)
            reached[message.layer] += len(message.rows)
        assert set(reached.values()) == {stop}, f"hidden states up to {reached}, expected {stop}"
        arrays = {layer: np.concatenate(p) for layer, p in parts.items()}
        return arrays if len(layers) > 1 else arrays[layers[0]]

    def silent(self, seconds=0.2):
        """Whether nothing at all comes, beside acks."""
        self.inbox = [m for m in self.inbox if m.type != "ack"]
        deadline = time.monotonic() + seconds
        while not self.inbox and time.monotonic() < deadline:
            message = self.receive(deadline - time.monotonic())
            if message and message.type != "ack":
                self.inbox.append(message)
        return not self.inbox


def pack(header):
    return msgpack.packb(header)


def data_frames(stream, rows, dtype=None, **header):
    """The frames of a data message; dtype names what NumPy cannot."""
    rows = np.asarray(rows)
    header = {"v": 1, "type": "data", "shape": rows.shape, "dtype": dtype or rows.dtype.name, **header}
    return [stream, pack(header), rows.tobytes()]


class Peer(Receiver):
    """A producer on the ingest ROUTER."""

    def __init__(self, daemon, address=None, keys=None):
        super().__init__(daemon, zmq.DEALER, keys)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address or daemon.ingest)

    def frames(self, *frames):
        self.socket.send_multipart(frames)

    def header(self, stream, **header):
        """A message of a header alone."""
        self.frames(stream, pack({"v": 1, **header}))

    def open(self, stream, next=None, **header):
        """Open with reply and return the ack; with next, the first that says so: acks do not tell what they answer."""
        self.header(stream, type="open", **{"reply": True, **header})
        while True:
            message = self.take(stream, "ack", "error")
            assert message.type == "ack", message
            if message.next == next or next is None:
                return message

    def data(self, stream, rows, **header):
        self.frames(*data_frames(stream, rows, **header))

    def refusal(self, stream, code):
        """The next message but acks and hidden states, which must be a refusal for this reason."""
        message = self.take(stream, "error")
        assert message.code == code, message
        assert isinstance(message.message, str) and message.message
        return message

    _names = itertools.count()

    def encode(self, rows, layers=(None,), **header):
        """Hidden states of rows as one message on a stream of its own: what all choppings must equal."""
        stream = b"one-shot-%d" % next(self._names)
        self.open(stream)
        self.data(stream, rows, end=True, **header)
        return self.hidden(stream, 0, len(rows), layers)


class Subscriber(Receiver):
    """A consumer on the publish socket; it exists once the daemon knows its subscription."""

    def __init__(self, daemon, prefix=b""):
        super().__init__(daemon, zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
        self.socket.connect(daemon.publish)
        self._wait(daemon)

    def _wait(self, daemon):
        """Close streams that do not exist in new epochs until one is heard of."""
        self.socket.setsockopt(zmq.SUBSCRIBE, b"probe")
        peer = Peer(daemon)
        deadline = time.monotonic() + TIMEOUT
        n = 0
        while not self.socket.poll(20):
            assert time.monotonic() < deadline and daemon.process.poll() is None, daemon.log()
            peer.header(b"probe-%d" % n, type="open")
            peer.header(b"probe-%d" % n, type="close")
            n += 1
        for i in range(n):
            peer.header(b"probe-%d" % i, type="flush")  # refused as closed: everything before is done
            peer.take(b"probe-%d" % i, "error")
        peer.close()
        self.socket.setsockopt(zmq.UNSUBSCRIBE, b"probe")
        while self.socket.poll(50):
            self.socket.recv_multipart()


class Publisher:
    """A lossy producer: a PUB as the daemon's SUB sees it (an XPUB, which knows when it has a subscriber)."""

    def __init__(self, daemon, address, bind):
        self.socket = daemon.context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        if bind:
            self.socket.bind(address)
        else:
            self.socket.connect(address)
        assert self.socket.poll(TIMEOUT * 1000), daemon.log()
        self.socket.recv()

    def data(self, stream, rows, **header):
        self.frames(*data_frames(stream, rows, **header))

    def header(self, stream, **header):
        self.frames(stream, pack({"v": 1, **header}))

    def frames(self, *frames):
        self.socket.send_multipart(frames)

    def close(self):
        self.socket.close(0)


class Relay:
    """The daemon's publish socket again, for a consumer outside the test, whose subscription can be waited for."""

    def __init__(self, daemon, prefix, address):
        self.source = Subscriber(daemon, prefix)
        self.sink = daemon.context.socket(zmq.XPUB)
        self.sink.setsockopt(zmq.SNDHWM, 0)
        self.sink.bind(address)

    def wait(self):
        """Wait for the consumer's subscription."""
        assert self.sink.poll(TIMEOUT * 1000)
        self.sink.recv()

    def run(self, until):
        """Hand messages over, up to the one that until(frames) is true of."""
        while True:
            assert self.source.socket.poll(TIMEOUT * 1000), self.source.daemon.log()
            frames = self.source.socket.recv_multipart()
            self.sink.send_multipart(frames)
            if until(frames):
                return
