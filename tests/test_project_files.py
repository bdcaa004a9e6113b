"""The files that publish the project agree with it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

import projgrad as pg

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="a source distribution without them")


def test_there_is_one_version() -> None:
    assert pg.__version__ == PROJECT["version"]
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == PROJECT["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_is_there(workflow: Path) -> None:
    text = workflow.read_text()
    scripts = set(re.findall(r"\.ci/\w+", text))
    assert scripts
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f'"{oldest}"' in text
    asked = re.findall(r"extra: \[(.*)\]|\[(test,[\w,]+)\]", text)
    extras = {name.strip(' "') for found in asked for name in ",".join(found).split(",")} - {"", "none"}
    assert extras <= set(PROJECT["optional-dependencies"])


def test_the_policy_on_files_names_its_tests() -> None:
    paths = re.findall(r"`(tests/\S+)`", (ROOT / "SECURITY.md").read_text())
    assert paths
    assert all((ROOT / path).is_file() for path in paths)
