"""What an example prints, as its tests read it."""

from __future__ import annotations

__all__ = ["table"]


def table(printed: str) -> list[dict[str, str]]:
    """The rows of the Markdown table in there, each a dict by the header; lines around it do not matter."""
    lines = [line for line in printed.splitlines() if line[:1] == "|"]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in body]
