"""What the command refuses, and that it says so by its exit code, whatever happens."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import numpy as np
import pytest

import projgrad as pg
from projgrad.files import open_weights
from projgrad.files.weights_file import sound
from projgrad.saved import SavedWeights
from tests.test_portable import plan_of, written
from tests.weights_files import ENDINGS, RULES, B, W, header, read, run, saved


@pytest.fixture
def rules(tmp_path):
    return written(tmp_path / "rules.toml", RULES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import sys\nsys.missing", "AttributeError: module 'sys' has no attribute 'missing'"),
        ("def", "SyntaxError: "),
        ("{}['key']", "KeyError: 'key'"),
        ("assert False", "AssertionError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import missing_module", "No module named 'missing_module'"),
    ],
)
def test_an_error_of_an_imported_module_is_one(tmp_path, capsys, monkeypatch, rules, text, says):
    (tmp_path / "does_not_work.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(tmp_path / "w.npz", a__weight=W)
    code, shown, error = run(capsys, "check", path, "--rules", rules, "--import", "does_not_work")
    assert (code, shown) == (2, "")
    assert error.startswith(f"projgrad: error: {says}")
    assert error.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_that_nobody_reads(tmp_path, rules):
    path = saved(tmp_path / "w.safetensors", a__weight=W)
    reads, writes = os.pipe()
    os.close(reads)
    words = [sys.executable, "-m", "projgrad.command", "check", path, "--rules", rules]
    done = subprocess.run(words, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (2, "")


def test_what_a_system_refuses_is_not_called_damage(tmp_path):
    for kind in (PermissionError, MemoryError):
        with pytest.raises(kind), sound(tmp_path, "file"):
            raise kind("no")
    with pytest.raises(ValueError, match="is no sound file: KeyError"), sound(tmp_path, "file"):
        raise KeyError


@pytest.mark.parametrize("ending", [".npz", ".pt", ".keras"])
def test_a_file_that_must_not_be_read(tmp_path, capsys, rules, ending, monkeypatch):
    pytest.importorskip({".npz": "numpy", ".pt": "torch", ".keras": "h5py"}[ending])
    path = tmp_path / f"w{ending}"
    path.write_bytes(b"anything")
    opened = io.open

    def denied(file, *arguments, **options):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(io, "open", denied)
    code, _, error = run(capsys, "check", path, "--rules", rules)
    assert code == 2
    assert error == f"projgrad: error: [Errno 13] Permission denied: '{path}'\n"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_was_replaced_since_it_was_read(tmp_path, capsys, rules, ending, monkeypatch):
    path, newer = saved(tmp_path / f"w{ending}", a__weight=W), saved(tmp_path / f"newer{ending}", a__weight=2 * W)
    written_later, projected = newer.read_bytes(), SavedWeights.projected
    monkeypatch.setattr(
        SavedWeights, "projected", lambda self: newer.exists() and newer.replace(path) and projected(self)
    )
    code, shown, error = run(capsys, "project", path, "--in-place", "--rules", rules)
    assert (code, shown) == (2, "")
    assert f"{path} was replaced or written to since it was read" in error
    assert path.read_bytes() == written_later
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "rules.toml"}


def test_two_arrays_of_one_name(tmp_path, capsys):
    path = tmp_path / "w.npz"
    np.savez(path, **{"m.w": W, "m/w": -W})
    rules = written(tmp_path / "rules.json", [{"names": "w", "constraint": {"type": "NonNeg"}}])
    code, _, error = run(capsys, "check", path, "--rules", rules, "--key", "m")
    assert code == 2
    assert "has m.w and m/w: under 'm', each is w" in error
    wide = [{"names": "*", "constraint": {"type": "LInfBall", "radius": 100.0}}]
    assert run(capsys, "check", path, "--rules", written(tmp_path / "all.json", wide))[0] == 0


def test_what_cannot_be_read_as_numbers_is_named(tmp_path, capsys, rules):
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    bits = np.zeros((4, 3), "u1")
    path.write_bytes(
        header(**{"a.weight": ("F32", W), "b": ("F8_E4M3", bits), "c": ("bfloat16", bits), "d": ("\x1b[2J", bits)})
    )
    for words in (("check", path), ("project", path, out)):
        shown = run(capsys, *words, "--rules", rules)[1].splitlines()
        assert [line for line in shown if line.startswith("unreadable")] == [
            "unreadable: b, (4, 3) of F8_E4M3",
            "unreadable: c, (4, 3) of bfloat16",
            r"unreadable: d, (4, 3) of \x1b[2J",
        ]
    assert open_weights(out).stored["b"].held is None
    for name, says in (("b", "not F8_E4M3"), ("c", "safetensors has no dtype bfloat16")):
        rule = written(tmp_path / "other.json", [{"names": name, "constraint": {"type": "NonNeg"}}])
        code, _, error = run(capsys, "check", path, "--rules", rule)
        assert (code, says in error) == (2, True)
    plan_of({"b": pg.NonNeg()}, {"b": (4, 3)}).save(tmp_path / "plan.json")
    assert run(capsys, "check", path, "--plan", tmp_path / "plan.json")[0] == 2


def test_a_framework_is_for_rules(tmp_path, capsys):
    path = saved(tmp_path / "w.npz", w=W)
    plan_of({"w": pg.NonNeg()}, {"w": (4, 3)}).save(tmp_path / "plan.json")
    code, _, error = run(capsys, "check", path, "--plan", tmp_path / "plan.json", "--framework", "jax")
    assert code == 2
    assert "--framework is for rules" in error


# -- tensors of PyTorch that share memory --------------------------------------------------------------------------


def test_weights_that_share_memory_in_part_are_refused(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path, out = tmp_path / "w.pt", tmp_path / "out.pt"
    whole = torch.tensor(W.repeat(3, axis=1))
    qkv = whole.clone()
    states = {"enc": whole, "dec": whole.t(), "qkv": qkv, "q": qkv[:1], "k": qkv[2:], "free": torch.ones(4, 3)}
    torch.save(states, path)
    for name, other in (("enc", "dec"), ("dec", "enc"), ("qkv", "q"), ("q", "qkv"), ("k", "qkv")):
        rules = written(tmp_path / "rules.json", [{"names": name, "constraint": {"type": "NonNeg"}}])
        code, _, error = run(capsys, "project", path, out, "--rules", rules)
        assert code == 2
        assert f"it shares memory with {other}," in error
        assert not out.exists()
    rules = written(tmp_path / "rules.json", [{"names": "free", "constraint": {"type": "UnitNorm", "axis": 0}}])
    assert run(capsys, "project", path, out, "--rules", rules)[0] == 0
    np.testing.assert_array_equal(read(out)["dec"], read(out)["enc"].T)


def test_parts_of_one_storage_that_do_not_overlap_are_weights_of_their_own(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path, out = tmp_path / "w.pt", tmp_path / "out.pt"
    flat = torch.tensor(np.concatenate([W.ravel(), B]))
    torch.save({"a.weight": flat[:12].view(4, 3), "again": flat[:12].view(4, 3), "bias": flat[12:]}, path)
    rules = written(tmp_path / "rules.json", RULES)
    assert run(capsys, "project", path, out, "--rules", rules)[0] == 0
    found = torch.load(out, weights_only=True)
    torch.testing.assert_close(found["a.weight"].norm(dim=1), torch.ones(4))
    assert found["again"].data_ptr() == found["a.weight"].data_ptr()
    np.testing.assert_array_equal(found["bias"], B)
