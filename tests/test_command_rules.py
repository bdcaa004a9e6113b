"""Rules with which the command would check nothing, or not what was meant."""

from __future__ import annotations

import numpy as np
import pytest

import projgrad as pg
from projgrad.command import main


@pg.register("tests.test_command_rules.same")
def same(x):
    return x


@pytest.fixture
def checked(tmp_path, capsys):
    np.savez(tmp_path / "m.npz", **{"fc/kernel": np.ones((2, 2), "float32"), "fc/bias": -np.ones(2, "float32")})

    def run(rules, *words):
        (tmp_path / "rules.toml").write_text(rules)
        code = main(["check", str(tmp_path / "m.npz"), "--rules", str(tmp_path / "rules.toml"), *words])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (
            '[[rules]]\nnames = {jax = "fc/kernel"}\nconstraint = {type = "NonNeg"}',
            "none of its rules has names for torch",
        ),
        ("rules = []", "there is no rule"),
        ("", "there is no rule"),
        ('[[rules]]\nnames = "fc/kernel"\nconstraint = "free"', "all that is selected is free"),
        (
            '[[rules]]\nnames = ["fc/kernel", "fc/bias"]\njoint = true\nconstraint = {type = "NonNeg"}',
            "with joint, names= is one pattern",
        ),
        ('[[rules]]\nnames = "*"\nconstraint = {type = "MaxNorm", axis = "None"}', 'write "none"'),
        (
            '[[rules]]\nnames = "*"\nconstraint = {type = "tests.test_command_rules.same"}',
            'type = "Function", function = "tests.test_command_rules.same"',
        ),
        (
            '[[rules]]\nnames = "*"\nconstraint = {type = "MaxNorm", axis = 0, max_value = {"0" = 3.0}}',
            "a set needs a type, and a Schedule",
        ),
    ],
)
def test_what_would_check_nothing_is_an_error(checked, rules, says):
    code, said = checked(rules, "--framework", "torch")
    assert code == 2
    assert says in said


def test_the_last_rule_wins(checked):
    rules = '[[rules]]\nnames = "fc/*"\nconstraint = {type = "NonNeg"}\n'
    free = '[[rules]]\nnames = "*bias"\nconstraint = "free"\n'
    assert checked(rules)[0] == 1
    assert checked(rules + free)[0] == 0
    assert checked(free + rules)[0] == 1


@pytest.mark.parametrize("tol", ["-1", "nan", "x"])
def test_what_is_no_distance(checked, tol):
    with pytest.raises(SystemExit) as error:
        checked('[[rules]]\nnames = "fc/*"\nconstraint = {type = "NonNeg"}', "--tol", tol)
    assert error.value.code == 2


def test_an_empty_plan_is_an_error(tmp_path, capsys):
    np.savez(tmp_path / "m.npz", w=np.ones(2))
    pg.Plan(()).save(tmp_path / "plan.json")
    assert main(["check", str(tmp_path / "m.npz"), "--plan", str(tmp_path / "plan.json")]) == 2
    assert "the plan is empty" in capsys.readouterr().err
