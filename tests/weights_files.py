"""Files of weights for the tests of the command, and a way to run it."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from projgrad.command import main
from projgrad.files import open_weights

W = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
UNIT = W / np.linalg.norm(W, axis=1, keepdims=True)
B = np.array([-1.0, 0.0, 2.0], "float32")
ENDINGS = (".safetensors", ".npz", ".pt")
RULES = [{"names": "*.weight", "constraint": {"type": "UnitNorm", "axis": 1}}]


def header(**tensors):
    """A safetensors file of these arrays, written by hand: a dtype's name and a NumPy array for each."""
    table: dict = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (kind, array) in tensors.items():
        end = len(data) + array.nbytes
        table[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def saved(path, **arrays):
    """A file of float32 arrays, in the format that its name ends in."""
    arrays = {name.replace("__", "."): x for name, x in arrays.items()}
    if path.suffix == ".safetensors":
        path.write_bytes(header(**{name: ("F32", x) for name, x in arrays.items()}))
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.tensor(x) for name, x in arrays.items()}, path)
    return path


def read(path):
    return {name: np.asarray(stored.array) for name, stored in open_weights(path).stored.items()}


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    done = capsys.readouterr()
    return code, done.out, done.err
