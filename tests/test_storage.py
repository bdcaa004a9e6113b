"""Reading what others wrote in bounded time, and writing atomically."""

from __future__ import annotations

import json
import os
import stat
import time

import pytest

import projgrad as pg
from projgrad.storage import near, parse_json, replacing
from tests.test_portable import plan_of, written


def test_a_name_that_is_there_twice_is_found_in_one_pass():
    text = "{" + ", ".join(f'"{i}": 0' for i in range(50_000)) + ', "49999": 1}'
    start = time.perf_counter()
    with pytest.raises(ValueError, match="'49999' is there twice"):
        parse_json(text)
    assert time.perf_counter() - start < 5  # comparing all with all takes far longer


def test_only_so_many_names_are_compared():
    names = iter([f"layer{i}" for i in range(100_000)])
    assert near("layer7", names).startswith("layer7")
    assert next(names) == "layer2000"
    assert near("x", []) == "(none)"
    assert len(near("x" * 10**6, ["y" * 10**6])) < 1000


@pytest.mark.parametrize(
    "rule",
    [
        {"names": "w", "constraint": {"type": "M" * 10**6}},
        {"names": "w", "constraint": {"type": "MaxNorm", "m" * 10**6: 1}},
        {"names": "w", "constraint": "m" * 10**6},
        {"names": {"t" * 10**6: "w"}, "constraint": {"type": "NonNeg"}},
        {"names": ["w" * 10**6, 3], "constraint": {"type": "NonNeg"}},
        {"names": ["w" * 10**6] * 2, "constraint": {"type": "NonNeg"}},
        {"names": "w" * 10**6, "constraint": {"type": "NonNeg"}, "every": 0},
        {"names": "w", "constraint": {"type": "NonNeg"}, "joint": "j" * 10**6},
        {"names": "w", "constraint": {"type": "NonNeg"}, "j" * 10**6: 3},
    ],
)
def test_an_error_is_no_longer_than_can_be_read(tmp_path, rule):
    with pytest.raises(ValueError, match="rules.json") as caught:
        pg.load_rules(written(tmp_path / "rules.json", [rule]))
    assert len(str(caught.value)) < 1000


def test_errors_about_a_saved_plan_are_short_too(tmp_path):
    path = tmp_path / "plan.json"
    plan_of({"w": pg.NonNeg()}, {"w": (2,)}).save(path)
    saved = json.loads(path.read_text())
    for fields in ({"names": ["w" * 10**6, 3]}, {"names": ["w" * 10**6], "shapes": []}, {"joint": "j" * 10**6}):
        path.write_text(json.dumps({**saved, "entries": [saved["entries"][0] | fields]}))
        with pytest.raises(ValueError, match="plan.json") as caught:
            pg.load_plan(path)
        assert len(str(caught.value)) < 1000


# -- writing -------------------------------------------------------------------------------------------------------


def write(path, overwrite=False):
    with replacing(path, overwrite=overwrite) as out:
        out.write(b"new")


def test_a_file_that_appears_at_the_last_moment_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "w"
    path.write_bytes(b"old")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # as it was when somebody looked
    with pytest.raises(FileExistsError, match="is not replaced"):
        write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write(path, overwrite=True)
    write(tmp_path / "another")
    assert path.read_bytes() == (tmp_path / "another").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_system_without_links(tmp_path, monkeypatch):
    def no_links(*arguments):
        raise PermissionError("links are not supported")

    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == b"new"
    with pytest.raises(FileExistsError), replacing(tmp_path / "v", overwrite=False):
        (tmp_path / "v").write_bytes(b"old")
    assert (tmp_path / "v").read_bytes() == b"old"


def test_the_longest_names_are_written(tmp_path):
    path = tmp_path / ("重" * 84)  # 252 bytes
    write(path)
    assert path.read_bytes() == b"new"


def test_a_missing_folder_is_said_with_the_name_that_was_given(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "missing" / "w")
    assert str(caught.value).endswith(f"'{tmp_path / 'missing' / 'w'}'")


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_plan_keeps_the_mode_of_the_one_that_it_replaces(tmp_path):
    path, plan = tmp_path / "plan.json", plan_of({"w": pg.NonNeg()}, {"w": (2,)})
    plan.save(path)
    assert stat.S_IMODE(path.stat().st_mode) != 0o600
    path.chmod(0o600)
    plan.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
