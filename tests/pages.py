"""Running the blocks of code of a page, one after the other, as a reader would."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import io
import re
import textwrap
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FRAMEWORKS", "Block", "blocks_of", "installed", "run"]

FRAMEWORKS = frozenset(
    ("chop", "equinox", "flax", "geotorch", "jax", "jaxopt", "keras", "matplotlib", "optax", "tensorflow", "torch")
)
_BLOCK = re.compile(
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^ *```\n(?:\s*^ *```text\n(?P<printed>.*?)^ *```$)?", re.S | re.M
)


@dataclass(frozen=True)
class Block:
    """A block of Python: its code, what the page says that it prints (None for nothing), and its first line there."""

    code: str
    printed: str | None
    line: int

    @property
    def needs(self) -> Set[str]:
        """The frameworks that it imports, also through a door of projgrad."""
        found: set[str] = set()
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            found |= {part for name in names for part in name.split(".")[:2] if part in FRAMEWORKS}
        return found

    @property
    def reads(self) -> Set[str]:
        """The names that must be there before it; those that it binds itself, anywhere, do not count."""
        names = [node for node in ast.walk(ast.parse(self.code)) if isinstance(node, ast.Name)]
        return {name.id for name in names if isinstance(name.ctx, ast.Load)} - self.binds

    @property
    def binds(self) -> Set[str]:
        """The names that it binds."""
        found: set[str] = set()
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.alias):
                found.add((node.asname or node.name).partition(".")[0])
        return found


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of Python of a page in Markdown, those in tabs too; sessions with ``>>>`` are left out."""
    for found in _BLOCK.finditer(page):
        code, printed = textwrap.dedent(found["code"]), found["printed"]
        if not code.startswith(">>>"):
            line = page.count("\n", 0, found.start("code")) + 1
            yield Block(code, None if printed is None else textwrap.dedent(printed), line)


def installed() -> Set[str]:
    """Those of `FRAMEWORKS` that can be imported."""
    return {name for name in FRAMEWORKS if importlib.util.find_spec(name) is not None}


def run(path: Path, there: Set[str], names: dict[str, Any]) -> tuple[int, int]:
    """Run the blocks of a page in one namespace, and check what they print.

    Args:
        path: the page.
        there: the frameworks that may be used.
        names: the namespace, which is filled.

    Returns:
        How many blocks were run, and how many left out: those that need another framework, or a name that only
        a block that was left out would have bound.

    Raises:
        AssertionError: a block prints something else than the page says.
    """
    ran, skipped, lost = 0, 0, set[str]()
    for block in blocks_of(path.read_text()):
        missing = (block.reads & lost) - set(names) - set(dir(builtins))
        if block.needs - there or missing:
            skipped, lost = skipped + 1, lost | block.binds
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert block.printed is None or printed.getvalue().rstrip() == block.printed.rstrip(), (
            f"{path}, line {block.line} prints\n{printed.getvalue()}"
        )
        ran += 1
    return ran, skipped
