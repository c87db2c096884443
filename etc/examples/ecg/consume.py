#!/usr/bin/python3
"""Subscribe to the hidden states of the ECG stream, predict each next patch from them, and draw where that fails.

    consume.py --publish ADDRESS [--out FOLDER] [--check prediction_error.npy]

Start the publisher once it says "subscribed".  It ends with the stream and leaves in FOLDER
    hidden_states.npy      float32 [rows, hidden_size]
    prediction_error.npy   float32 [rows - 1], mean squared error of the prediction of patch i + 1 made at patch i
    ecg.png                the signal above, the error below
Needs the Python client (PYTHONPATH=protocol/python) and matplotlib.
"""
import argparse
import os
import sys

import numpy as np
from mamba2d import Client, Hidden

from recording import PATCH, RATE, Recording

SMOOTH = 9        # patches, 0.2 s: about the length of a premature ventricular beat
STANDS_OUT = 4.0  # times the median


def receive(address, stream, timeout):
    """Return all hidden states of the stream, from position 0 to its end, [rows, hidden_size]."""
    parts, expected = [], 0
    with Client(publish=address) as client:
        messages = client.hidden(stream, timeout)
        print("subscribed", flush=True)
        for message in messages:
            if not isinstance(message, Hidden) or message.stream != stream.encode():
                continue
            if message.pos != expected:
                sys.exit(f"hidden states {expected} to {message.pos - 1} were missed")
            parts.append(message.rows)
            expected += len(message.rows)
            if message.end:
                return np.concatenate(parts)
    sys.exit(f"nothing came for {timeout} seconds")


def smooth(error):
    """Geometric mean over SMOOTH patches: a beat that is wrong all along counts more than one sharp peak."""
    return np.exp(np.convolve(np.log(error + 1e-4), np.ones(SMOOTH) / SMOOTH, mode="same"))


def draw(recording, error, start, seconds, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    level = smooth(error)
    threshold = STANDS_OUT * np.median(level)
    samples = slice(int(start * RATE), int((start + seconds) * RATE))
    patches = slice(samples.start // PATCH, samples.stop // PATCH)
    sample_time = np.arange(len(recording.millivolts)) / RATE
    patch_time = (np.arange(len(error)) + 1.5) * PATCH / RATE  # the middle of the patch that was predicted
    stands_out = np.interp(sample_time, patch_time, level) > threshold

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 4.6), sharex=True, height_ratios=[3, 2])
    blue, red = "#27496d", "#c8102e"
    shown = recording.millivolts[samples]
    above.plot(sample_time[samples], shown, color=blue, linewidth=0.8)
    above.plot(sample_time[samples], np.where(stands_out[samples], shown, np.nan), color=red, linewidth=1.4)
    above.set_ylabel("ECG, mV")
    above.set_title("Beats that the model did not see coming (MIT-BIH record 208)", loc="left", fontsize=11)
    below.semilogy(patch_time[patches], error[patches], color="0.8", linewidth=0.5, label="of each patch of 22 ms")
    below.semilogy(patch_time[patches], level[patches], color=blue, linewidth=1.2,
                   label=f"geometric mean of {SMOOTH}")
    below.semilogy(patch_time[patches], np.where(level > threshold, level, np.nan)[patches], color=red, linewidth=2)
    below.axhline(threshold, color=red, linewidth=0.6, linestyle=(0, (4, 3)),
                  label=f"{STANDS_OUT:g} times its median")
    below.legend(loc="upper right", ncols=3, fontsize=8, frameon=False, borderaxespad=0)
    below.set_ylim(3e-4, 8)
    below.set_ylabel("prediction error")
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.fill_between(sample_time[samples], 0, 1, where=stands_out[samples], color=red, alpha=0.09, linewidth=0,
                          transform=axes.get_xaxis_transform())
    below.set_xlim(start, start + seconds)
    below.xaxis.set_major_locator(plt.MultipleLocator(2))
    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def check(error, path):
    difference = np.abs(error - np.load(path)).max()
    print(f"largest difference from {path}: {difference:.1e}")
    if not difference <= 1e-4:
        sys.exit("the prediction errors differ by more than 1e-4")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", metavar="ADDRESS", required=True)
    parser.add_argument("--stream", default="ecg")
    parser.add_argument("--out", metavar="FOLDER", default=".")
    parser.add_argument("--check", metavar="FILE.npy", help="compare the prediction errors, to 1e-4")
    parser.add_argument("--from", dest="start", type=float, default=242.0, help="second that the picture begins at")
    parser.add_argument("--seconds", type=float, default=22.0, help="that the picture shows")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the next message")
    args = parser.parse_args()

    recording = Recording()
    hidden = receive(args.publish, args.stream, args.timeout)
    error = recording.prediction_error(hidden)
    np.save(os.path.join(args.out, "hidden_states.npy"), hidden)
    np.save(os.path.join(args.out, "prediction_error.npy"), error)
    draw(recording, error, args.start, args.seconds, os.path.join(args.out, "ecg.png"))
    print(f"{len(hidden)} hidden states, mean prediction error {error.mean():.4f}, ecg.png: in {args.out}")
    if args.check:
        check(error, args.check)


if __name__ == "__main__":
    main()
