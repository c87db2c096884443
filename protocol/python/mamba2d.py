"""Client for mamba2d, the daemon that turns embedding streams into the hidden states of a Mamba-2 backbone.

    import numpy as np
    from mamba2d import Client

    with Client("ipc:///run/mamba2d/ingest") as client:
        hidden = client.encode("sensor-7", rows)       # rows [n, hidden_size] -> hidden [n, hidden_size]
        hidden = client.encode("sensor-7", more_rows)  # goes on where the last call stopped

A stream is named by 1 to 255 bytes (a str is sent as UTF-8).  Its rows are numbered from 0: a row's *position*.  The
daemon keeps the cache of every stream between calls, and counts the positions; this module keeps the rows that the
daemon may still lose, and sends them again after a broken connection or a restart of the daemon.  PROTOCOL.md, in the
folder above, is the contract and explains every word used here.

Rows are NumPy arrays: embeddings [n, hidden_size] of float32, float16 or bfloat16 (float64 is sent as float32), or
token ids [n] of uint8, uint16, int32 or uint32 (int64 is sent as int32).  NumPy has no bfloat16: give an array of
ml_dtypes.bfloat16, or its bits as uint16 with dtype="bfloat16".  Hidden states that the daemon sends as bfloat16
come as ml_dtypes.bfloat16 if that package is installed and as uint16 bits otherwise; widen() makes both float32.

A Client belongs to one thread.  Needs pyzmq, msgpack and NumPy.
"""
import json
import random
import re
import time
from bisect import bisect_right
from typing import NamedTuple, Optional

import msgpack
import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = np.dtype(np.uint16)

__version__ = "0.1.0"
__all__ = ["Client", "Event", "Hidden", "Refused", "widen"]

VERSION = 1
FINAL = "final"  # the layer of hidden states after the final norm

_FLOATS = ("float32", "float16", "bfloat16")
_TOKENS = ("uint8", "uint16", "int32", "uint32")
_SENT_AS = {"float64": "float32", "int64": "int32"}

_HEARTBEAT_MS = 2000  # between pings; a peer that misses them for three times as long counts as gone
_BACK_OFF = 0.05      # seconds to let refusals arrive before sending again
_BACK_OFF_MOST = 1.0  # seconds between connections of which one after another is lost, at most
_MAKE_ROOM = 1.0      # seconds without credit after which unfinished windows are flushed, to have some back
_MESSAGES = 1000      # most that are taken in before the connection is looked at again


class Refused(Exception):
    """The daemon refused a message, and changed nothing because of it.

    code      one of PROTOCOL.md's error codes, such as "non_finite"
    message   a sentence for people
    expected  the position that the daemon expects next, where it said so
    stream    the stream id, bytes
    """

    def __init__(self, code, message, expected=None, stream=b""):
        super().__init__(f"{code}: {message}" + ("" if expected is None else f" (expected position {expected})"))
        self.code, self.message, self.expected, self.stream = code, message, expected, stream


class Hidden(NamedTuple):
    """Hidden states of consecutive rows of one stream."""
    stream: bytes
    epoch: int
    pos: int            # position of the first row
    layer: object       # "final", or the index of the layer after which the residual stream was taken
    rows: np.ndarray    # [n, hidden_size]
    end: bool           # the last of a closed stream
    t: Optional[int]    # the producer's clock in ns, where it sent one


class Event(NamedTuple):
    """Something that happened to a stream: "gap", "reset", "closed" or "evicted"."""
    stream: bytes
    epoch: int
    pos: int
    event: str
    message: str


def widen(hidden):
    """Return hidden states as float32, exactly, whatever the daemon's output.dtype; uint16 is taken for bfloat16."""
    if hidden.dtype == np.uint16:
        return (hidden.astype(np.uint32) << 16).view(np.float32)
    return hidden.astype(np.float32)


def _read_key(path, keyword):
    """The key in a file with one line "keyword KEY" beside comments."""
    with open(path, encoding="ascii") as file:
        lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
    if len(lines) != 1 or len(lines[0]) != 2 or lines[0][0] != keyword or len(lines[0][1]) != 40:
        raise ValueError(f'{path}: expected one line "{keyword} KEY"')
    return lines[0][1].encode()


def _read_keys(key, server_key):
    """Our public key, our secret one and the daemon's public one; None without files."""
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        raise ValueError("key and server_key go together")
    secret = _read_key(key, "secret-key")
    return zmq.curve_public(secret), secret, _read_key(server_key, "public-key")


def _address(address, role):
    if address is not None and not re.fullmatch(r"tcp://.+:[0-9]+|(ipc|inproc)://.+", address):
        raise ValueError(f'{role}: "{address}", expected tcp://HOST:PORT or ipc://PATH')
    return address


def _stream_id(stream):
    if not isinstance(stream, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"a stream id is a str or bytes, not {type(stream).__name__}")
    name = stream.encode() if isinstance(stream, str) else bytes(stream)
    if not 1 <= len(name) <= 255:
        raise ValueError(f"a stream id has 1 to 255 bytes, this one {len(name)}")
    return name


def _as_rows(rows, dtype):
    """Return a private copy of rows as it goes over the wire, and the dtype's name there."""
    rows = np.asarray(rows)
    name = dtype or _SENT_AS.get(rows.dtype.name, rows.dtype.name)
    if name not in _FLOATS + _TOKENS:
        raise ValueError(f"rows of {rows.dtype.name} cannot be sent")
    if rows.ndim != (2 if name in _FLOATS else 1) or 0 in rows.shape[1:]:
        raise ValueError(f"rows of {name} must be [n, hidden_size], token ids [n]; these are {list(rows.shape)}")
    if name == "bfloat16":
        if rows.dtype.name not in ("bfloat16", "uint16"):
            raise ValueError('dtype="bfloat16" wants bits as uint16, or ml_dtypes.bfloat16')
        return np.array(rows.view(np.uint16), dtype="<u2", order="C"), name
    if name in _TOKENS and rows.size and not np.array_equal(rows, rows.astype(name)):
        raise ValueError(f"token ids do not fit {name}")
    return np.array(rows, dtype=np.dtype(name).newbyteorder("<"), order="C"), name


def _as_hidden(payload, header):
    """View a hidden message's payload frame, if it has one, as the array [rows, columns] that its header describes."""
    dtype = _bfloat16 if header["dtype"] == "bfloat16" else np.dtype(header["dtype"])
    return np.frombuffer(payload[0] if payload else b"", dtype).reshape(header["shape"])


_STATE_NUMBERS = ("epoch", "position", "emitted", "window")


def _read_state(file):
    """The bytes of a state file as a dict: arrays by tensor name, numbers and strings by metadata key."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8:8 + size])
    metadata = header.pop("__metadata__")
    state = {name: np.frombuffer(file, "<f4", offset=8 + size + entry["data_offsets"][0],
                                 count=int(np.prod(entry["shape"]))).reshape(entry["shape"]).copy()
             for name, entry in header.items()}
    state.update((key, int(metadata[key]) if key in _STATE_NUMBERS else metadata[key])
                 for key in (*_STATE_NUMBERS, "model", "device", "positions") if key in metadata)
    return state


def _write_state(name, state):
    """The bytes of a state file without a checksum, for the stream of that name."""
    metadata = {"format": "mamba2d-state-1", "stream": name.hex()}
    header, payload, end = {"__metadata__": metadata}, [], 0
    for key, value in state.items():
        if isinstance(value, (str, int, np.integer)):
            metadata[key] = str(value)
            continue
        array = np.ascontiguousarray(value, "<f4")
        header[key] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
        payload.append(array.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *payload])


class _Stream:
    """What the client knows of one stream that it feeds.

    The rows before position `given` came from the caller, those before `sent` have been sent on this connection, and
    those before `next` were accepted by the daemon, which has published the hidden states before `done` and may still
    ask for rows from `durable` on: so from there on they are kept.  All hidden states before `got` are here; those
    before `wanted` the caller has, or gave up, so that they are never asked for again, not even by another process.
    """

    def __init__(self, name, epoch, reply):
        self.name, self.epoch, self.reply = name, epoch, reply
        self.starts, self.kept = [], []      # positions, and (rows, dtype) from there on
        self.given = self.sent = self.next = self.done = self.got = 0
        self.is_fed = False                  # to be opened on every new connection
        self.is_open = False                 # that was answered on this one
        self.adopting = True                 # the caller goes on wherever the daemon says that the stream stands
        self.finish, self.finish_sent = None, True  # "flush" or "end", to go with the row before `given`
        self.ended = False
        self.t = None                        # the producer's clock, to go with the row before `given`
        self.refusal = None
        self.nothing = None                  # (no rows, dtype)
        self.wanted = 0                      # hidden states from here on are collected,
        self.hidden, self.hidden_next = {}, {}  # by layer: a list of arrays, and the position after them

    def adopt(self, position):
        """Make position that of the caller's next row; rows kept from there on were not accepted and are dropped."""
        n = bisect_right(self.starts, position)
        if position > self.given:
            n = 0  # somebody else fed the rows up to position: what we have ends before them
        elif n and self.starts[n - 1] + len(self.kept[n - 1][0]) > position:
            rows, dtype = self.kept[n - 1]
            self.kept[n - 1] = rows[:position - self.starts[n - 1]], dtype
        del self.starts[n:], self.kept[n:]
        self.given = self.got = self.wanted = position
        self.finish, self.finish_sent, self.adopting = None, True, False

    def append(self, rows, dtype, finish, t=None):
        if len(rows):
            self.starts.append(self.given)
            self.kept.append((rows, dtype))
            self.given += len(rows)
        self.nothing = rows[:0], dtype
        self.finish, self.finish_sent, self.t = finish, finish is None, t

    def piece(self, n, n_bytes):
        """The rows to send next, at most n of them and about n_bytes, and their dtype; no rows where all are sent."""
        if self.sent >= self.given:
            return self.nothing
        i = bisect_right(self.starts, self.sent) - 1
        rows, dtype = self.kept[i]
        first = self.sent - self.starts[i]
        return rows[first:first + max(1, min(n, n_bytes // rows[:1].nbytes))], dtype

    def rewind(self, position):
        """Send again from position on."""
        self.sent, self.finish_sent = position, self.finish is None
        kept_from = self.starts[0] if self.starts else self.given
        if position < kept_from:
            self.refuse("gap", f"the daemon needs rows that this client keeps only from {kept_from} on", position)

    def forget(self, durable):
        """Drop kept rows that never have to be sent again."""
        n = bisect_right(self.starts, durable) - 1
        if n > 0:
            del self.starts[:n], self.kept[:n]

    def refuse(self, code, message, expected=None):
        self.let_go()
        self.refusal = Refused(code, message, expected, self.name)

    def let_go(self):
        """How much of what was sent the daemon accepted is unknown: to be found out when the stream is used again."""
        self.is_fed, self.adopting, self.refusal, self.hidden, self.hidden_next = False, True, None, {}, {}

    def take(self, layer, pos, rows):
        """Collect hidden states.  After a reconnect some come again, with the same bytes, and are dropped."""
        fresh = rows[max(0, self.hidden_next.get(layer, self.wanted) - pos):]
        if len(fresh):
            self.hidden.setdefault(layer, []).append(fresh)
            self.hidden_next[layer] = pos + len(rows)

    def collected(self):
        """Hand over what was collected: {layer: hidden states}, or the array alone where there is one layer."""
        hidden = {layer: np.concatenate(parts) for layer, parts in self.hidden.items()}
        self.hidden, self.hidden_next = {}, {}
        if not hidden:
            rows, _ = self.nothing
            return np.empty((0, *rows.shape[1:]), np.float32)
        return hidden if len(hidden) > 1 else next(iter(hidden.values()))


class Client:
    """A connection to one daemon, for feeding streams, reading what is published, or both.

    ingest    address of the daemon's ingest socket, for encode, encode_many and send
    publish   address of its publish socket, for hidden
    identity  ZeroMQ routing id for ingest; best left out
    control   address of its control socket, for control
    key, server_key  for a daemon that asks for keys: the files of our secret key and of the daemon's public one, as
              `mamba2ctl keygen` writes them
    timeout   seconds without a word from the daemon until a call gives up with TimeoutError
    silence   seconds without a word after which the connection is made anew
    message_bytes  longer runs of rows are split into messages of about this size
    keep      keep rows until the daemon has them on disk, so that they outlive its restart.  A daemon without
              state.dir never has: then all rows of a stream are kept, and keep=False bounds the memory of a stream
              that never ends, at the price of a Refused("gap") when the daemon was restarted
    """

    def __init__(self, ingest=None, publish=None, identity=None, *, control=None, key=None, server_key=None,
                 timeout=60.0, silence=20.0, message_bytes=1 << 20, keep=True, context=None):
        self._addresses = {role: _address(address, role) for role, address in
                           (("ingest", ingest), ("publish", publish), ("control", control))}
        self._identity, self._timeout, self._silence = identity, timeout, silence
        self._message_bytes, self._keep = message_bytes, keep
        self._context = context or zmq.Context.instance()
        self._keys = _read_keys(key, server_key)
        self._socket = self._lost = self._poller = None
        self._streams = {}
        self._ended = set()   # names of streams that ended on this connection
        self._credit = 0      # rows that may be sent but not done, over all streams
        self._hold_until = 0  # time before which nothing is sent
        self._losses = 0      # of connections on which nothing came, one after another
        self._doubtful = {}   # streams that a connection given up for its silence may yet open: opened again since?

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Close the connection; the streams stay open in the daemon.  What was sent gets a second to leave."""
        self._disconnect(linger_ms=1000)

    def encode(self, stream, rows, epoch=0, *, pos=None, end=False, dtype=None):
        """Append rows to the stream and return their hidden states.

        rows [n, hidden_size] or token ids [n] -> hidden [n, hidden_size]: one row for each row given, or one for each
        window where the daemon's output.rows is `last`.  With several output.layers: {layer: hidden}, where a layer
        is its index or "final".

        The rows need not fill whole windows: the rest is flushed, and the next call goes on from there.  end=True
        closes the stream after these rows.  A higher epoch than before starts the stream anew.

        pos is the position of rows[0].  Without it, a client that does not know the stream goes on where the daemon
        has it.  A producer that was restarted, or had an exception from an earlier call, passes the first position
        whose hidden state it lacks, and the rows from there on.  Where the daemon has no state that is old enough, it
        needs rows from before pos: then Refused has the code "gap", and `expected` is the pos to call again with.

        Raises Refused; TimeoutError after `timeout` seconds without a word from the daemon.  Rows of that call may
        have been accepted then, and a call without pos goes on after them.
        """
        return self.encode_many({stream: rows}, epoch, pos=pos, end=end, dtype=dtype)[stream]

    def encode_many(self, streams, epoch=0, *, pos=None, end=False, dtype=None):
        """encode() for several streams at once, which the daemon batches: {stream: rows} -> {stream: hidden}."""
        given = {stream: _as_rows(rows, dtype) for stream, rows in streams.items()}
        feeds = {stream: self._stream(stream, epoch, True, pos) for stream in given}
        self._run(feeds.values(), lambda s: s.is_open)
        for stream, s in feeds.items():
            s.wanted = s.given
            s.append(*given[stream], "end" if end else "flush")
        self._run(feeds.values(), lambda s: s.finish_sent and (s.ended if end else s.done >= s.given))
        if end:
            self._forget(feeds.values())
        return {stream: s.collected() for stream, s in feeds.items()}

    def send(self, stream, rows, epoch=0, *, pos=None, flush=False, end=False, dtype=None, wait="accepted",
             t=None):
        """Append rows to the stream; their hidden states are published, not returned.

        Returns when the rows are "accepted" by the daemon, or "done" (published; those of an unfinished window are
        only after a flush), or, with wait=None, when credit has let them leave.  They are kept and sent again after a
        reconnect all the same, in a later call.  end=True waits until all is done.  t, a clock of yours in ns, comes
        back as Hidden.t with the last of these rows.  The rest is as in encode.
        """
        waits = {
            None: lambda s: s.finish_sent and s.sent >= s.given,
            "accepted": lambda s: s.finish_sent and s.next >= s.given,
            "done": lambda s: s.finish_sent and s.done >= s.given,
        }
        if wait not in waits:
            raise ValueError(f'wait: {wait!r}, expected "accepted", "done" or None')
        given = _as_rows(rows, dtype)
        s = self._stream(stream, epoch, False, pos)
        self._run([s], lambda s: s.is_open)
        s.append(*given, "end" if end else "flush" if flush else None, t)
        s.wanted = s.given
        self._run([s], waits["done" if end else wait])
        if end:
            self._forget([s])

    def position(self, stream):
        """The position of the next row that encode or send will append; None while only the daemon knows."""
        s = self._streams.get(_stream_id(stream))
        return None if s is None or s.adopting else s.given

    def hidden(self, prefix=b"", timeout=None):
        """Subscribe to all streams whose id begins with prefix; returns an iterator over Hidden and Event.

        Returns once it is connected and the subscription on its way, and raises TimeoutError if nobody is there.
        What was published before is missed.  So is what a consumer is too slow for: Hidden.pos tells.  The iterator
        ends when nothing has come for `timeout` seconds (None: never).
        """
        socket = self._new_socket(zmq.SUB, "publish")
        socket.setsockopt(zmq.SUBSCRIBE, prefix.encode() if isinstance(prefix, str) else bytes(prefix))
        self._shake_hands(socket, "publish")
        return self._published(socket, timeout)

    def control(self, cmd, **arguments):
        """Ask the control socket ("status", "streams", ...); returns the answer, a dict, or raises Refused."""
        with self._new_socket(zmq.DEALER, "control") as socket:
            self._shake_hands(socket, "control")
            socket.send(msgpack.packb({"v": VERSION, "cmd": cmd, **arguments}))
            if not socket.poll(self._timeout * 1000):
                raise TimeoutError(f"no answer from {self._addresses['control']}")
            answer = msgpack.unpackb(socket.recv())
        if not answer.get("ok"):
            raise Refused(answer.get("code", "internal"), answer.get("message", ""))
        return answer

    def export_state(self, stream):
        """Fetch a stream's state as it is after all rows that were accepted: a dict.

        layers.{i}.conv_state  float32 [conv_dim, conv_kernel - 1], oldest first
        layers.{i}.ssm_state   float32 [num_heads, head_dim, state_size]
        pending                float32 [n, hidden_size]: rows that do not fill a window, which the cache has not seen
        epoch, position, emitted, window, model, device   numbers and strings, as PROTOCOL.md says,
        positions              and of the pending rows, where some between them were skipped

        Hugging Face keeps one column more in its conv_states, at the left, which does not matter for what follows:
        np.pad(conv_state, ((0, 0), (1, 0))) makes one of ours, conv_states[layer][0, :, 1:] is ours.
        """
        return _read_state(self.control("export", stream=_stream_id(stream))["state"])

    def import_state(self, stream, state):
        """Make a stream of a state as export_state returns it; returns the epoch and the position to go on with.

        A stream of that name that exists already goes on from the state in its next epoch.  Nothing but the tensors of
        the layers has to be there: `position` is 0 without, `emitted` is `position`, `model` and `window` are the
        daemon's (a state of another model or window is refused), and no rows are pending.
        """
        name, daemon = _stream_id(stream), self.control("status")
        state = {"epoch": 0, "position": 0, "model": daemon["fingerprint"], "window": daemon["window"],
                 "pending": np.empty((0, daemon["hidden_size"]), np.float32), **state}
        state.setdefault("emitted", state["position"])
        answer = self.control("import", stream=name, state=_write_state(name, state))
        return answer["epoch"], answer["next"]

    # --- the connection ---------------------------------------------------------------------------------------------
    # A DEALER that loses its connection makes another by itself, as a new peer that feeds no stream.  So the first
    # sign of a loss ends the socket: a new one opens all streams again, and nothing old can arrive on it.

    def _new_socket(self, kind, role):
        if self._addresses[role] is None:
            raise ValueError(f"this Client was made without the address of the daemon's {role} socket")
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        if kind == zmq.SUB:  # may fill its queue, which together with heartbeats ends the process (libzmq issue 4767)
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 15)
            socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
            socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        else:
            socket.setsockopt(zmq.RCVHWM, 0)  # credit bounds it
            socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        if self._keys and not self._addresses[role].startswith("ipc:"):  # there a file's mode decides
            socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = self._keys
        return socket

    def _next_event(self, events, role, seconds):
        """Something that happened to a connection; None if nothing does in time.  Raises Refused if we are kept out."""
        if not events.poll(seconds * 1000):
            return None
        event = recv_monitor_message(events)["event"]
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise Refused("denied", f"{self._addresses[role]} does not let this key in")
        return event

    def _shake_hands(self, socket, role):
        """Connect, and wait until that is done; if it fails, close the socket."""
        events = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        socket.connect(self._addresses[role])
        try:
            if not self._next_event(events, role, self._timeout):
                raise TimeoutError(f"nobody answers at {self._addresses[role]}")
        except BaseException:
            socket.disable_monitor()
            socket.close()
            raise
        socket.disable_monitor()

    def _connect(self):
        self._disconnect()
        self._socket = self._new_socket(zmq.DEALER, "ingest")
        self._socket.setsockopt(zmq.SNDHWM, 0)  # credit bounds what is under way
        self._socket.setsockopt(zmq.SNDTIMEO, int(self._timeout * 1000))  # without a connection there is no room at all
        if self._identity is not None:
            self._socket.setsockopt(zmq.IDENTITY, self._identity)
        self._lost = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._lost, zmq.POLLIN)
        self._socket.connect(self._addresses["ingest"])
        self._credit = 0
        self._ended.clear()
        for s in self._streams.values():
            if s.is_fed:
                self._open(s)

    def _connect_again(self):
        """Connect after a loss; where one follows another without a word in between, after a pause that grows."""
        self._disconnect()
        if self._losses:
            time.sleep(random.uniform(0.5, 1) * min(_BACK_OFF * 2 ** self._losses, _BACK_OFF_MOST))
        self._losses += 1
        self._connect()

    def _disconnect(self, linger_ms=0):
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger_ms)
            self._socket = self._lost = self._poller = None

    def _run(self, streams, finished):
        """Send and receive until finished(s) holds for each of the streams."""
        try:
            heard = asked = time.monotonic()
            while True:
                self._send_waiting()
                if all(finished(s) for s in streams):
                    return
                now = time.monotonic()
                if self._receive(0.05):
                    heard = asked = now
                elif now - heard > self._timeout:
                    raise TimeoutError(f"no word from {self._addresses['ingest']} for {self._timeout} seconds" + (
                        ", and connections to it end at once: has it another key, or keys at all?"
                        if self._losses > 1 else ""))
                elif now - asked > self._silence:
                    asked = now
                    self._connect()
                    self._doubtful = {s.name: False for s in self._streams.values() if s.is_fed}
                elif now - asked > _MAKE_ROOM and self._has_waiting_rows():
                    asked = now
                    self._make_room()
                for s in streams:
                    if s.refusal:
                        raise s.refusal
        except BaseException:
            for s in streams:
                s.let_go()
            self._disconnect()  # what is still on its way to us must not be taken for answers to the next call
            raise

    # --- sending ----------------------------------------------------------------------------------------------------

    def _stream(self, stream, epoch, reply, pos):
        """Find the stream, or make it, for feeding it in this epoch; it is open once the daemon has answered."""
        name = _stream_id(stream)
        s = self._streams.get(name)
        if s is not None and epoch < s.epoch:
            raise Refused("stale_epoch", f"the stream is in epoch {s.epoch}", stream=name)
        if s is None or epoch > s.epoch:
            s = self._streams[name] = _Stream(name, epoch, reply)
        if s.refusal:  # of a message that the call before did not wait for
            refusal = s.refusal
            s.let_go()
            raise refusal
        if pos is not None and s.adopting:
            s.adopt(pos)
        elif pos not in (None, s.given):
            raise ValueError(f"the next row of {name!r} has position {s.given}, not {pos}")
        must_open = not s.is_fed or reply and not s.reply
        if reply and not s.reply:
            s.reply, s.got = True, s.given
        s.is_fed = True
        if self._socket is None or name in self._ended:  # an ack of the stream that ended may still come
            self._connect()
        elif must_open:
            self._open(s)
        return s

    def _forget(self, streams):
        for s in streams:
            if s.reply:
                s.got = s.wanted = s.given
                self._send(s, {"type": "close"})
            del self._streams[s.name]
            self._ended.add(s.name)

    def _send(self, s, header, payload=()):
        header = {"v": VERSION, "epoch": s.epoch, **header}
        if s.reply and not s.adopting:
            header["got"] = min(s.got, s.wanted)
        try:
            self._socket.send_multipart([s.name, msgpack.packb(header), *payload], copy=False)
        except zmq.Again:
            raise TimeoutError(f"no connection to {self._addresses['ingest']} for {self._timeout} seconds: "
                               "is it an ingest socket, and does it ask for keys?") from None

    def _open(self, s):
        s.is_open = False
        header = {"type": "open", "reply": s.reply}
        if s.reply and not s.adopting:
            header["from"] = s.got
        self._send(s, header)

    def _send_waiting(self):
        """Send what waits and credit allows, stream after stream: full windows give their credit back."""
        if time.monotonic() < self._hold_until:
            return
        streams = [s for s in self._streams.values() if s.is_fed and s.is_open]
        credit = self._credit - sum(max(0, s.sent - s.done) for s in streams)
        for s in streams:
            while s.sent < s.given and credit > 0 or s.sent >= s.given and not s.finish_sent:
                credit -= self._send_piece(s, credit)

    def _has_waiting_rows(self):
        return any(s.sent < s.given for s in self._streams.values() if s.is_fed and s.is_open)

    def _make_room(self):
        """The rows of many unfinished windows hold all credit, it seems: have them emitted."""
        for s in self._streams.values():
            if s.is_fed and s.is_open and s.done < s.sent:
                self._send(s, {"type": "flush"})

    def _send_piece(self, s, credit):
        """Send one data message and return the rows it took."""
        rows, dtype = s.piece(credit, self._message_bytes)
        header = {"type": "data", "pos": s.sent, "shape": rows.shape, "dtype": dtype}
        s.sent += len(rows)
        if s.sent >= s.given and s.finish:
            header[s.finish] = s.finish_sent = True
        if s.sent >= s.given and s.t is not None:
            header["t"] = s.t
        self._send(s, header, [rows] if len(rows) else [])
        return len(rows)

    # --- receiving --------------------------------------------------------------------------------------------------

    def _receive(self, seconds):
        """Take what has arrived, waiting so long for the first of it; returns whether there was anything."""
        ready = dict(self._poller.poll(seconds * 1000))
        messages = []
        try:
            while self._socket in ready and len(messages) < _MESSAGES:
                messages.append(self._socket.recv_multipart(zmq.NOBLOCK, copy=False))
        except zmq.Again:
            pass
        if messages:
            self._losses = 0
        if self._next_event(self._lost, "ingest", 0):  # messages may be for the new peer that we are; all come again
            self._connect_again()
            return False
        for name, header, *payload in messages:
            self._on_message(name.bytes, msgpack.unpackb(header.buffer), payload)
        return bool(messages)

    def _on_message(self, name, header, payload):
        s = self._streams.get(name)
        if header["type"] == "error":
            self._on_error(s, name, header)
        elif s is None or not s.is_fed or header["epoch"] != s.epoch:
            pass  # of a stream that ended, or that we no longer feed, or of its earlier life
        elif header["type"] == "ack":
            self._on_ack(s, header)
        elif header["type"] == "hidden":
            s.take(header.get("layer", FINAL), header["pos"], _as_hidden(payload, header))
            s.ended = s.ended or header.get("end", False)

    def _on_ack(self, s, header):
        s.next, s.done, self._credit = header["next"], header["done"], header["credit"]
        if not s.is_open:
            s.is_open = True
            if s.adopting:
                s.adopt(s.next)
            s.rewind(s.next)
        s.got = max(s.got, s.done)  # on this connection, hidden states come before the ack that calls them done
        s.forget(header["durable"] if self._keep else s.done)

    def _on_error(self, s, name, header):
        code, expected = header["code"], header.get("expected")
        if s is None or not s.is_fed:
            if not name:
                raise Refused(code, header["message"], expected)
        elif code in ("gap", "no_credit") and expected is not None:
            self._on_gap(s, expected)
        elif code == "no_credit" and not s.is_open:
            time.sleep(_BACK_OFF)  # more messages than the daemon takes from us in a second
            self._open(s)
        elif code == "shutting_down":
            self._hold(1)  # the connection will break; until then
            s.rewind(s.next)
        elif code == "denied" and self._lost.poll(0):
            pass  # denied to the peer that a lost connection made us
        elif code == "denied" and name in self._doubtful and not (self._doubtful[name] and s.is_open):
            if not self._doubtful[name]:  # that connection's open came behind ours and took the stream
                self._doubtful[name] = True
                self._open(s)
        else:
            s.refuse(code, header["message"], expected)

    def _on_gap(self, s, expected):
        """Go back to the position that the daemon expects."""
        if not s.is_open:
            return  # about a message from before our open, whose answer will say
        self._hold(_BACK_OFF)  # while the messages behind the refused one come back as gaps too
        if expected < s.next:
            self._open(s)  # the daemon has lost the stream, and that we asked for replies
        else:
            s.rewind(expected)

    def _hold(self, seconds):
        self._hold_until = time.monotonic() + seconds

    def _published(self, socket, timeout):
        with socket:
            while socket.poll(None if timeout is None else timeout * 1000):
                stream, header, *payload = socket.recv_multipart()
                header = msgpack.unpackb(header)
                if header["type"] == "hidden":
                    yield Hidden(stream, header["epoch"], header["pos"], header.get("layer", FINAL),
                                 _as_hidden(payload, header).copy(), header.get("end", False), header.get("t"))
                elif header["type"] == "event":
                    yield Event(stream, header["epoch"], header["pos"], header["event"], header.get("message", ""))
