"""The command ``projgrad``: checks and projects saved weights, by rules or a saved plan, without their program."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from projgrad.files import ENDINGS, open_weights
from projgrad.portable import FRAMEWORKS, load_plan, load_rules
from projgrad.saved import SavedWeights
from projgrad.storage import on_one_line, replacing

__all__ = ["main"]

_INSIDE, _OUTSIDE, _FAILED = 0, 1, 2
_FORMATS = ", ".join(ENDINGS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` are those of the process by default.

    Returns:
        0 where all constraints hold, 1 where one is violated, and 2 where that could not be told.
    """
    given = _parser().parse_args(arguments)
    try:
        for name in given.modules:
            importlib.import_module(name)
        code = _check(given) if given.command == "check" else _project(given)
        print(end="", flush=True)  # here, where it may fail
        return code
    except BrokenPipeError:  # nobody reads, as after `| head`: nor what Python writes when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, SystemExit) as error:  # of a module, too: whatever it is, it does not say that one is violated
        expected = isinstance(error, ImportError | OSError | TypeError | ValueError) and str(error)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"projgrad: error: {on_one_line(reason)}", file=sys.stderr)
    return _FAILED


def _check(given: argparse.Namespace) -> int:
    return _shown(_read(given), given.tol)


def _project(given: argparse.Namespace) -> int:
    if given.in_place == (given.out is not None):
        raise ValueError("say where to write: a file OUT, or --in-place for the one that is read, and not both")
    out = given.weights if given.in_place else given.out
    if out.suffix.lower() != given.weights.suffix.lower():
        raise ValueError(f"{out} must end in {given.weights.suffix}, as formats are not converted")
    weights = _read(given)
    with replacing(out, overwrite=given.in_place or given.overwrite, like=given.weights) as file:
        projected = weights.projected()
        weights.file.write(file, projected.changed)
    return _shown(projected)


def _shown(weights: SavedWeights, tol: float | None = None) -> int:
    """Print the table, what is missing in it, and what is outside of its set."""
    outside = weights.outside(tol)
    print(weights.report())
    for line in weights.unreadable():
        print(f"unreadable: {line}")
    for line in outside:
        print(f"outside: {line}")
    return _OUTSIDE if outside else _INSIDE


def _read(given: argparse.Namespace) -> SavedWeights:
    if given.plan is not None and given.framework is not None:
        raise ValueError("--framework is for rules: the names in a plan are those of its framework")
    file = open_weights(given.weights)
    plan = load_plan(given.plan) if given.plan is not None else None
    rules = None if plan is not None else load_rules(given.rules, given.framework or file.framework)
    return SavedWeights.under(given.key, file, plan=plan, rules=rules, step=given.step)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("projgrad", description="Check and project saved weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="a table of the weights; exit code 1 if one is outside of its set")
    project = commands.add_parser("project", help="write a copy with the weights in their sets")
    for command in (check, project):
        command.add_argument("weights", type=Path, help=f"a file of weights: {_FORMATS}")
    project.add_argument("out", type=Path, nargs="?", help="the file to write, which must not exist")
    for command in (check, project):
        what = command.add_mutually_exclusive_group(required=True)
        what.add_argument("--rules", type=Path, metavar="FILE", help="rules, in TOML or JSON")
        what.add_argument("--plan", type=Path, metavar="FILE", help="a plan that plan.save(FILE) wrote")
        command.add_argument("--framework", choices=FRAMEWORKS, help="whose names the rules are to take")
        command.add_argument("--key", default="", help="only the weights under this key, without it in their names")
        command.add_argument("--step", type=_step, help="the number of steps made, for schedules")
        command.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="import a module of yours first, which registers sets; its code runs",
        )
    check.add_argument("--tol", type=_distance, help="the distance that is allowed; by default what rounding makes")
    project.add_argument("--in-place", action="store_true", help="replace the file of weights")
    project.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps")
    return int(text)


def _distance(text: str) -> float:
    try:
        distance = float(text)
    except ValueError:
        distance = -1.0
    if not distance >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a distance")
    return distance


if __name__ == "__main__":
    sys.exit(main())
