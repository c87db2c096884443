#!/usr/bin/python3
"""A checkpoint of a well-known shape with random weights of about the usual size, in bfloat16: for benchmarks.

    random_checkpoint.py 130m|370m|780m|1.3b|2.7b FOLDER

It needs nothing but Python.  The numbers come from a short list over and over, of a prime length, so that no two rows are
the same.
"""
import argparse
import array
import json
import math
import os
import random

SHAPES = {"130m": (768, 24), "370m": (1024, 48), "780m": (1536, 48), "1.3b": (2048, 48), "2.7b": (2560, 64)}
STATE_SIZE, HEAD_DIM, CONV_KERNEL, VOCABULARY = 128, 64, 4, 16
PERIOD = 65521


def tensors(hidden_size, layers):
    """Names and shapes."""
    d_inner, heads = 2 * hidden_size, 2 * hidden_size // HEAD_DIM
    conv_dim = d_inner + 2 * STATE_SIZE
    mixer = {"in_proj.weight": (d_inner + conv_dim + heads, hidden_size), "out_proj.weight": (hidden_size, d_inner),
             "conv1d.weight": (conv_dim, 1, CONV_KERNEL), "conv1d.bias": (conv_dim,), "norm.weight": (d_inner,),
             "A_log": (heads,), "D": (heads,), "dt_bias": (heads,)}
    yield "embeddings.weight", (VOCABULARY, hidden_size)
    yield "norm_f.weight", (hidden_size,)
    for i in range(layers):
        yield f"layers.{i}.norm.weight", (hidden_size,)
        for name, shape in mixer.items():
            yield f"layers.{i}.mixer.{name}", shape


def numbers(name):
    """The list of numbers that a tensor is made of, as bfloat16."""
    generator = random.Random(0)
    scale, mean = 0.02 if name.endswith("proj.weight") else 0.5, 1 if "norm" in name else 0
    floats = array.array("f", (generator.gauss(mean, scale) for _ in range(PERIOD)))
    return array.array("H", memoryview(floats).cast("B").cast("H")[1::2]).tobytes()


def write(folder, hidden_size, layers):
    config = dict(model_type="mamba2", hidden_size=hidden_size, num_hidden_layers=layers, state_size=STATE_SIZE,
                  head_dim=HEAD_DIM, num_heads=2 * hidden_size // HEAD_DIM, expand=2, n_groups=1,
                  conv_kernel=CONV_KERNEL, vocab_size=VOCABULARY, chunk_size=256, use_bias=False, use_conv_bias=True,
                  hidden_act="silu", layer_norm_epsilon=1e-5)
    header, end, lists = {}, 0, {}
    for name, shape in tensors(hidden_size, layers):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    os.mkdir(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        text = json.dumps(header).encode()
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in header.items():
            kind = name.split(".", 2)[-1]
            lists[kind] = lists.get(kind) or numbers(kind)
            whole, rest = divmod(2 * math.prod(tensor["shape"]), 2 * PERIOD)
            file.write(lists[kind] * whole + lists[kind][:rest])
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder")
    options = parser.parse_args()
    write(options.folder, *SHAPES[options.shape])


if __name__ == "__main__":
    main()
