"""The recording, and the two small linear maps around the backbone: patch -> row, hidden state -> next patch."""
import json
import os
import struct

import numpy as np

FOLDER = os.path.dirname(os.path.abspath(__file__))
RATE = 360  # samples a second
PATCH = 8   # samples a row


def _load_float32(path):
    """Read a safetensors file of float32 tensors: {name: array}."""
    with open(path, "rb") as f:
        (header_bytes,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(header_bytes))
        data = f.read()
    return {name: np.frombuffer(data[slice(*info["data_offsets"])], np.float32).reshape(info["shape"])
            for name, info in header.items() if name != "__metadata__"}


class Recording:
    """millivolts [samples], and normalised patches [rows, PATCH]."""

    def __init__(self):
        self.adapter = _load_float32(os.path.join(FOLDER, "adapter.safetensors"))
        self.millivolts = (np.load(os.path.join(FOLDER, "ecg.npy")).astype(np.float32) - 1024) / 200
        mean, std = self.adapter["signal_mean_std"]
        self.patches = ((self.millivolts - mean) / std).reshape(-1, PATCH)

    def rows(self):
        """The stream: the embedding of every patch, [rows, hidden_size]."""
        return self.patches @ self.adapter["patch_embedding.weight"].T + self.adapter["patch_embedding.bias"]

    def prediction_error(self, hidden):
        """hidden [rows, hidden_size] -> [rows - 1]: mean squared error of the prediction of each next patch."""
        predicted = hidden[:-1] @ self.adapter["prediction_head.weight"].T + self.adapter["prediction_head.bias"]
        return ((predicted - self.patches[1:len(hidden)]) ** 2).mean(axis=1)
