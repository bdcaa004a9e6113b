"""Weights from anywhere: files that are cut off, damaged or made to harm give a clear error, and run nothing."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from projgrad.files import open_weights
from tests.test_portable import written
from tests.weights_files import ENDINGS, RULES, B, W, header, read, run, saved


@pytest.fixture
def rules(tmp_path):
    return written(tmp_path / "rules.toml", RULES)


class Evil:
    """What runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def refused(capsys, path, rules, says):
    code, shown, error = run(capsys, "check", path, "--rules", rules)
    assert (code, shown) == (2, "")
    assert str(path) in error
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_that_are_cut_off_or_no_such_files(tmp_path, capsys, rules, ending):
    whole = saved(tmp_path / f"w{ending}", a__weight=W, a__bias=B).read_bytes()
    bad = tmp_path / f"bad{ending}"
    for content in (b"", b"\x80\x04.", b"\0" * 1000, *(whole[: len(whole) * i // 10] for i in range(1, 10))):
        bad.write_bytes(content)
        refused(capsys, bad, rules, "")
    bad.unlink()
    bad.mkdir()
    refused(capsys, bad, rules, "is not a file")


@pytest.mark.parametrize("ending", [".npz", ".pt"])
def test_archives_with_flipped_bytes(tmp_path, capsys, rules, ending):
    whole = saved(tmp_path / f"w{ending}", a__weight=W, a__bias=B).read_bytes()
    bad = tmp_path / f"bad{ending}"
    rng = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            content[at] ^= int(rng.integers(1, 256))
        bad.write_bytes(content)
        assert run(capsys, "check", bad, "--rules", rules)[0] in (0, 1, 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (struct.pack("<Q", 2**62) + b"{}", "cut off"),
        (struct.pack("<Q", 3) + b"{{}", "no sound safetensors"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "nested too deep"),
        (struct.pack("<Q", 2) + b"[]", "no table"),
        (struct.pack("<Q", 2) + b"{}more", "has more"),
        (header(**{"a.weight": ("F32", W)})[:-4], "cut off"),
        (header(**{"a.weight": ("F64", W)}), "does not take"),
        (header(**{"a.weight": ("F32", W)}).replace(b"[0, 48]", b"[4, 52]"), "starts at byte 4"),
        (header(**{"a.weight": ("F32", W)}).replace(b"[4, 3]", b"[-4,3]"), "impossible"),
        (header(**{"a.weight": ("F32", W)}).replace(b"[4, 3]", b"[4,1e"), "no sound safetensors"),
        (header(a=("F32", B), b=("F32", B)).replace(b"[12, 24]", b"[0, 12] "), "starts at byte 0"),
        (header(a=("F32", B), b=("F32", B)).replace(b'"b"', b'"a"'), "there twice"),
    ],
)
def test_hostile_safetensors(tmp_path, capsys, rules, content, says):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refused(capsys, path, rules, says)


def test_arrays_that_are_not_aligned_or_empty(tmp_path, capsys):
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    empty, one = np.zeros((0, 2), "f4"), np.float64(-3.0)
    arrays = {"flag": ("U8", np.ones(3, "u1")), "a": ("F64", W.astype("f8")), "none": ("F32", empty), "b": ("F64", one)}
    path.write_bytes(header(**arrays))
    stored = open_weights(path).stored
    assert not stored["a"].held.flags.aligned
    np.testing.assert_array_equal(stored["a"].held, W)
    assert (stored["none"].shape, stored["b"].held.shape) == ((0, 2), ())
    rules = written(tmp_path / "rules.json", [{"names": ["a", "b", "none"], "constraint": {"type": "NonNeg"}}])
    assert run(capsys, "project", path, out, "--rules", rules)[0] == 0
    np.testing.assert_array_equal(read(out)["a"], np.maximum(W, 0))
    path.write_bytes(header())
    assert open_weights(path).stored == {}


def test_a_file_is_opened_once_for_all_its_arrays(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "w.safetensors"
    path.write_bytes(header(**{f"a{i}": ("F32", B) for i in range(400)}))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 50, limits[1]))
    try:
        stored = open_weights(path).stored
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(np.array_equal(one.held, B) for one in stored.values())


def test_names_cannot_write_to_the_terminal(tmp_path, capsys, rules):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(header(**{"a\x1b[2J\nall is well": ("F32", W)}))
    refused(capsys, path, rules, r"a\x1b[2J\nall is well")
    path.write_bytes(header(**{"a.weight": ("F32", W)}).replace(b'"F32"', b'"\\n!"'))
    error = run(capsys, "check", path, "--rules", rules)[2]
    assert error.count("\n") == 1


def test_a_huge_header_is_not_read(tmp_path, capsys, rules):
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40 - 8))
        file.truncate(2**40)  # which takes no space on the disk
    refused(capsys, path, rules, "are not read")


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def npy(shape, descr="<f4", data=b"", order=False):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": order, "shape": shape})
    return file.getvalue() + data


def test_hostile_npz(tmp_path, capsys, rules):
    path, mark = tmp_path / "bad.npz", tmp_path / "mark"
    np.savez(path, **{"a.weight": np.array([Evil(mark)], dtype=object)})
    refused(capsys, path, rules, "nothing is unpickled")
    for content, says in (
        (pickle.dumps(Evil(mark)), "has no header"),
        (npy((2**40,)), "is to have the shape"),
        (npy((2**62, 2**62)), "is to have the shape"),
        (npy((-1, -1), data=b"1234"), "is to have the shape"),
        (npy((1,), descr="|O", data=b"\0" * 8), "nothing is unpickled"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 0xFFFF, "has no header"),
        (b"\x93NUMPY\x09\x00", "has no header"),
        (b"\x93NUMPY\x01\x00\x17\x00{'descr': '<f4', 'x': (", "has no header"),
    ):
        refused(capsys, archive(path, **{"a.weight.npy": content}), rules, says)
    refused(capsys, archive(path, **{"a.weight.npy": npy((2**26,), data=bytes(2**28))}), rules, "are not unpacked")
    assert path.stat().st_size < 2**20
    assert not mark.exists()


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_unpack_without_limit_are_refused(tmp_path, capsys, rules, kind):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("a.weight.npy", npy((4, 3), data=W.tobytes()))
    refused(capsys, path, rules, "neither stored as it is nor deflated")


def test_a_member_that_is_larger_than_it_says(tmp_path, capsys, rules):
    path = archive(tmp_path / "bad.npz", **{"a.weight.npy": npy((4, 3), data=bytes(2**28))})
    size = struct.pack("<L", len(npy((4, 3))) + 2**28)
    assert path.read_bytes().count(size) == 2
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", len(npy((4, 3))) + 48)))
    tracemalloc.start()
    try:
        refused(capsys, path, rules, "damaged")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_nothing_is_extracted_from_an_archive(tmp_path, capsys):
    inside = tmp_path / "inside"
    inside.mkdir()
    members = {"../out.npy": npy((1,), data=b"\0\0\0\0"), "../notes.txt": b"text", "/tmp/x": b""}
    path = archive(inside / "w.npz", **members)
    rules = written(tmp_path / "rules.json", [{"names": "*", "constraint": {"type": "SumTo", "total": 1.0, "axis": 0}}])
    assert run(capsys, "project", path, inside / "o.npz", "--rules", rules)[0] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"inside", "rules.json"}
    assert zipfile.ZipFile(inside / "o.npz").read("../notes.txt") == b"text"
    np.testing.assert_array_equal(read(inside / "o.npz")["../out"], [1])


def test_hostile_torch_files(tmp_path, capsys, rules):
    torch = pytest.importorskip("torch")
    path, mark = tmp_path / "bad.pt", tmp_path / "mark"
    torch.save({"a.weight": Evil(mark)}, path)
    refused(capsys, path, rules, "weights_only=True")
    path.write_bytes(pickle.dumps({"a.weight": Evil(mark)}))
    refused(capsys, path, rules, "not what torch.save writes")
    torch.save({"a.weight": torch.tensor(W)}, path, _use_new_zipfile_serialization=False)
    refused(capsys, path, rules, "not what torch.save writes")
    torch.save({"a.weight": torch.zeros(1).expand(2**40)}, path)
    refused(capsys, path, rules, "are not unpacked")
    torch.save({f"a{i}": torch.zeros(1).expand(2**22, 1 + i) for i in range(16)}, path)
    refused(capsys, path, rules, "are not unpacked")
    torch.save({"a.weight": torch.zeros(1, 3).expand(4, 3)}, path)
    assert "one number in memory" in run(capsys, "check", path, "--rules", rules)[2]
    laughs: dict = {}
    for _ in range(40):
        laughs = {"a": laughs, "b": laughs}
    torch.save(laughs, path)
    refused(capsys, path, rules, "too many parts")
    loop: dict = {}
    loop["a"] = loop
    torch.save(loop, path)
    refused(capsys, path, rules, "nested too deep")
    torch.save({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(2)}, path)
    refused(capsys, path, rules, "two tensors called 'a.b'")
    refused(capsys, archive(path, **{"x/data.pkl": pickle.dumps(Evil(mark)), "x/version": b"3"}), rules, "")
    refused(capsys, archive(path, **{"x/data.pkl": bytes(2**28)}), rules, "are not unpacked")
    assert not mark.exists()


def h5(make):
    h5py = pytest.importorskip("h5py")
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        make(file, h5py)
    return data.getvalue()


def chunk_larger_than_it_says(file):
    dataset = file.create_dataset("layers/a/vars/0", (3,), "f4", chunks=(3,), compression="gzip")
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(2**24)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f, h5py: f.__setitem__("layers/a/vars/0", h5py.ExternalLink("/etc/passwd", "/")), "is a link"),
        (lambda f, h5py: f.__setitem__("layers/a/vars/0", h5py.SoftLink("/layers")), "is a link"),
        (lambda f, h5py: f.__setitem__("layers/a", h5py.ExternalLink("other.h5", "/")), "is a link"),
        (lambda f, h5py: f.create_group("layers/a").__setitem__("b", f["layers"]), "there twice"),
        (lambda f, h5py: f.create_group("layers/a").__setitem__("b", f), "layers is there twice"),
        (lambda f, h5py: f.create_group("/a" * 60), "nested too deep"),
        (lambda f, h5py: f.__setitem__("layers/b", f.create_group("layers/a")), "layers/b is there twice"),
        (
            lambda f, h5py: f.__setitem__("layers/a/vars/1", f.create_dataset("layers/a/vars/0", (3,))),
            "/1 is there twice",
        ),
        (lambda f, h5py: f.__setitem__("layers/a", [1.0]), "is no group"),
        (lambda f, h5py: f.create_group("layers/a/vars/0"), "is no dataset"),
        (lambda f, h5py: f.create_dataset("layers/a/vars/0", (2**40,), "f4", chunks=(1024,)), "are not unpacked"),
        (
            lambda f, h5py: f.create_dataset("layers/a/vars/0", (1,), "f4", chunks=(2**28,), maxshape=(None,)),
            "are not unpacked",
        ),
        (lambda f, h5py: chunk_larger_than_it_says(f), "is compressed"),
        (
            lambda f, h5py: f.create_dataset("layers/a/vars/0", (9,), "f4", external=[("/etc/passwd", 0, 36)]),
            "in another file",
        ),
    ],
)
def test_hostile_keras_files(tmp_path, capsys, rules, make, says):
    path = archive(tmp_path / "bad.keras", **{"config.json": "{}", "model.weights.h5": h5(make)})
    refused(capsys, path, rules, says)


def test_damaged_keras_files(tmp_path, capsys, rules):
    pytest.importorskip("h5py")
    whole = h5(lambda f, h5py: f.__setitem__("layers/a/vars/0", W))
    path = tmp_path / "bad.keras"
    for members, says in (
        ({"config.json": "{}"}, "it has no 'model.weights.h5'"),
        ({"model.weights.h5": whole}, "it has no 'config.json'"),
        ({"config.json": "[" * 100_000, "model.weights.h5": whole}, "nested too deep"),
        ({"config.json": "{}", "model.weights.h5": whole[:1000]}, "damaged"),
        ({"config.json": "{}", "model.weights.h5": b"\0" * 1000}, "damaged"),
    ):
        refused(capsys, archive(path, **members), rules, says)
    rng = np.random.default_rng(0)
    for _ in range(50):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            content[at] ^= int(rng.integers(1, 256))
        archive(path, **{"config.json": "{}", "model.weights.h5": bytes(content)})
        assert run(capsys, "check", path, "--rules", rules)[0] in (0, 1, 2)
