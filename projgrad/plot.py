"""Reports over training time, as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from projgrad.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_reports"]

_PANELS = {
    "violation": "largest violation",
    "before": "largest violation before the projection",
    "moved": "distance moved by the projection",
    "on_boundary": "share of groups on the boundary",
    "norms": "norms of the groups",
}
_LOGARITHMIC = ("before", "moved")


def plot_reports(reports: Iterable[tuple[int, Report]], path: Any = None) -> Figure:
    """Draw what reports have seen of the constrained parameters in the course of a training.

    A panel per quantity, a line per parameter; what was not recorded has no panel. Norms are a band from the smallest
    to the largest. The name of a parameter that was not finite says so.

    Args:
        reports: pairs of a step and the report made then.
        path: of a file to write, a PNG, PDF, ... by its ending; None for none.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no constrained parameter in the reports.

    Examples:
        >>> seen = []
        >>> for step in range(1000):
        ...     train()
        ...     if step % 10 == 0:
        ...         seen.append((step, optimizer.report()))
        >>> pg.plot_reports(seen, "constraints.png")
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot_reports() needs matplotlib: pip install "projgrad[plot]"') from error

    reports = list(reports)
    lines = _lines(reports)
    lost = {row.name for _, report in reports for row in report if not row.finite}
    if not lines:
        raise ValueError("plot_reports() needs a report of a parameter that is constrained")
    panels = [field for field in _PANELS if any(field in found for found in lines.values())]
    if "before" in panels:  # which tells more
        panels.remove("violation")
    spread = colormaps["turbo"].resampled(len(lines))(range(len(lines)))
    colours = colormaps["tab10"].colors if len(lines) <= 10 else spread  # type: ignore[attr-defined]

    rows, columns = (len(panels) + 1) // 2, 2  # norms and the boundary are always there
    figure = Figure(figsize=(9, 0.6 + 2.4 * rows + 0.06 * len(lines)), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for field, ax in zip(panels, grid, strict=False):
        for (name, found), colour in zip(lines.items(), colours, strict=False):
            steps, values = zip(*found[field], strict=True) if field in found else ((), ())
            if values and field == "norms":
                low, values = zip(*values, strict=True)
                ax.fill_between(steps, low, values, color=colour, alpha=min(0.2, 1 / len(lines)), lw=0)
                ax.plot(steps, low, color=colour, lw=0.7)
            label = f"{name} (NOT FINITE)" if name in lost else name
            ax.plot(steps, values, label=label, color=colour, lw=1.4, marker="." if len(values) == 1 else "")
        if field in _LOGARITHMIC and any(value > 0 for found in lines.values() for _, value in found.get(field, ())):
            ax.set_yscale("log", nonpositive="mask")
        _decorate(ax, field)
    for ax in grid:  # those that are left
        ax.remove()
    shown = figure.axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=min(len(lines), 3), fontsize=8, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _lines(reports: Iterable[tuple[int, Report]]) -> dict[str, dict[str, list[tuple[int, Any]]]]:
    """Of every constrained parameter, the steps and values of what there is of it."""
    lines: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for step, report in sorted(reports, key=lambda pair: pair[0]):
        for row in report:
            for field in _PANELS:
                value = getattr(row, field)
                if row.constraint is not None and value is not None:
                    if field == "on_boundary" and not row.finite:
                        value = math.nan  # for a gap, as in the other panels
                    lines.setdefault(row.name, {}).setdefault(field, []).append((step, value))
    return lines


def _decorate(ax: Any, field: str) -> None:
    ax.set_title(_PANELS[field], fontsize=9, loc="left")
    ax.tick_params(which="both", labelsize=8, labelbottom=True)
    ax.set_xlabel("step", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    if field == "on_boundary":
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
