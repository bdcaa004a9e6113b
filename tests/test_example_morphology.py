"""The example of dilations runs, keeps the kernels in their sets, and computes dilations."""

from __future__ import annotations

import importlib
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.printed import table

for _needed in ("matplotlib", "sklearn", "tqdm", "mlxtend"):
    pytest.importorskip(_needed)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """A module of the example, for a framework that is installed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = None

    def load(framework: str):
        nonlocal threads
        pytest.importorskip(framework)
        if framework == "torch":
            threads = sys.modules["torch"].get_num_threads()
        return importlib.import_module(f"morphology_{framework}")

    yield load
    if threads:
        sys.modules["torch"].set_num_threads(threads)


def dilated(images, kernels):
    """Each pixel of each dilation by itself."""
    size = kernels.shape[1]
    out = np.empty((len(images), len(kernels), images.shape[1] - size + 1, images.shape[2] - size + 1))
    for n, f, y, x in product(*map(range, out.shape)):
        out[n, f, y, x] = np.max(images[n, y : y + size, x : x + size] + kernels[f])
    return out


def random_case():
    rng = np.random.default_rng(0)
    return rng.random((2, 9, 8)).astype("float32"), rng.normal(size=(3, 5, 5)).astype("float32")


def test_the_dilation_in_torch_and_its_derivative(example):
    layer, (images, kernels) = example("torch").Dilation(3, 5), random_case()
    torch = sys.modules["torch"]
    layer.weight.data = torch.from_numpy(kernels)[:, None]
    out = layer(torch.from_numpy(images)[:, None])
    np.testing.assert_allclose(out.detach().numpy(), dilated(images, kernels), rtol=1e-6)

    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    out.backward(weights)
    windows = torch.from_numpy(images).unfold(1, 5, 1).unfold(2, 5, 1)[:, None]
    kernel = torch.from_numpy(kernels).requires_grad_()
    torch.sum((windows + kernel[:, None, None]).amax((-2, -1)) * weights).backward()
    torch.testing.assert_close(layer.weight.grad[:, 0], kernel.grad)


def test_the_dilation_in_keras(example):
    layer, (images, kernels) = example("keras").Dilation(3, 5), random_case()
    layer.build((None, 9, 8, 1))
    layer.kernel.assign(np.moveaxis(kernels, 0, -1)[:, :, None])
    out = np.moveaxis(sys.modules["keras"].ops.convert_to_numpy(layer(images[..., None])), -1, 1)
    np.testing.assert_allclose(out, dilated(images, kernels), rtol=1e-6)


@pytest.mark.parametrize("framework", ["torch", pytest.param("keras", marks=pytest.mark.slow)])
def test_kernels_stay_in_their_sets(example, capsys, tmp_path, framework):
    example(framework)
    picture = tmp_path / "morphology.png"
    importlib.import_module("morphology").main(["--framework", framework, "--quick", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = {row["kernels"]: row for row in table(capsys.readouterr().out)}
    assert list(found) == ["free", "non-negative", "non-positive", "extensive"]
    assert float(found["free"]["smallest"]) < 0 < float(found["free"]["largest"])
    assert float(found["non-negative"]["smallest"]) == 0 < float(found["non-negative"]["largest"])
    for label in ("non-positive", "extensive"):
        assert float(found[label]["smallest"]) < 0 == float(found[label]["largest"])
    for label, row in found.items():
        assert (row["violation"] == "") if label == "free" else (float(row["violation"]) == 0)
        assert row["epochs"] == "2"
    assert found["extensive"]["darker"] == found["non-negative"]["darker"] == "0.0%"
    assert [row["tutorial"] for row in found.values()] == ["0.9255", "0.9343", "0.9293", "0.9291"]
