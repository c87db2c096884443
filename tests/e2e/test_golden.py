"""Hidden states through the sockets against what transformers computed in one pass over the whole sequence."""
import numpy as np
import pytest

from harness import CASES, Peer, from_bfloat16, relative_error, same_bytes, to_bfloat16

CASE = "seed-46032"


@pytest.mark.parametrize("window", [1, 8, 64, 256])
@pytest.mark.parametrize("case", CASES)
def test_every_layer_of_every_case(daemons, golden, case, window):
    want = golden(case)
    daemon = daemons(case, window=window, **{"output.layers": ["final", *want.layers]})
    got = Peer(daemon).encode(want.rows, layers=(None, *want.layers))
    for layer in want.layers:
        assert relative_error(got[layer], want.hidden[layer]) <= 1e-5, f"layer {layer}"
    assert relative_error(got[None], want.hidden["final"]) <= 1e-5


@pytest.mark.parametrize("first", [0, 1, 7, 8, 9, 63])
@pytest.mark.parametrize("window", [1, 8, 64])
def test_one_row_at_a_time_against_one_row_then_the_rest(shared_daemons, golden, window, first):
    """transformers#46032: cached input longer than one row gave wrong hidden states."""
    want = golden(CASE)
    daemon = shared_daemons(CASE, window=window)
    peer = Peer(daemon)
    stream = b"first-%d" % first
    peer.open(stream)
    for row in want.rows[:first]:
        peer.data(stream, row[None], flush=True)
    peer.data(stream, want.rows[first:], flush=True)
    got = peer.hidden(stream, 0, len(want.rows))
    assert relative_error(got, want.hidden["final"]) <= 1e-5
    assert same_bytes(got, peer.encode(want.rows))


def test_windows_agree_with_each_other(daemons, golden):
    want = golden(CASE)
    token_by_token, *others = [Peer(daemons(CASE, window=w)).encode(want.rows) for w in (1, 5, 8, 64, 256)]
    for got in others:
        assert relative_error(got, token_by_token) <= 1e-5


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32"])
def test_token_ids_are_looked_up(shared_daemons, golden, dtype):
    want = golden("causal-lm-sharded")
    peer = Peer(shared_daemons("causal-lm-sharded", window=8))
    got = peer.encode(want.tokens.astype(dtype))
    assert relative_error(got, want.hidden["final"]) <= 1e-5
    assert same_bytes(got, peer.encode(want.rows)), "the embeddings of the same tokens"


def test_half_precision_rows_are_widened_exactly(shared_daemons, golden):
    rows = golden(CASE).rows
    peer = Peer(shared_daemons(CASE, window=8))
    half = rows.astype(np.float16)
    assert same_bytes(peer.encode(half), peer.encode(half.astype(np.float32)))
    bits = to_bfloat16(rows)
    assert same_bytes(peer.encode(bits, dtype="bfloat16"), peer.encode(from_bfloat16(bits)))


@pytest.mark.parametrize("dtype, narrow", [("float16", lambda a: a.astype(np.float16)), ("bfloat16", to_bfloat16)])
def test_hidden_states_are_rounded_to_nearest(shared_daemons, golden, dtype, narrow):
    rows = golden(CASE).rows
    full = Peer(shared_daemons(CASE, window=8)).encode(rows)
    got = Peer(shared_daemons(CASE, window=8, **{"output.dtype": dtype})).encode(rows)
    assert same_bytes(got, narrow(full))


def test_only_the_layers_asked_for_come(shared_daemons, golden):
    want = golden("odd-shapes")
    peer = Peer(shared_daemons("odd-shapes", window=8, **{"output.layers": [1]}))
    assert relative_error(peer.encode(want.rows, layers=(1,)), want.hidden[1]) <= 1e-5
    assert peer.silent()


def test_threads_and_batch_size_change_no_bit(daemons, golden):
    rows = golden("eight-groups").rows
    outputs = [Peer(daemons("eight-groups", window=8, threads=threads, **{"limits.batch_rows": batch})).encode(rows)
               for threads, batch in ((1, 8), (1, 4096), (2, 8), (2, 4096))]
    for got in outputs[1:]:
        assert same_bytes(got, outputs[0])
