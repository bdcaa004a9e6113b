"""The page of all sets: what each is, how it is projected onto, who else has it, and a picture of it in the plane.

    python examples/catalogue.py --out examples/catalogue

Reads the docstrings of the sets and writes the page `README.md` and the pictures beside it.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np

import projgrad as pg

REACH = 2.0  # of the pictures, from the middle to the side

Points = np.ndarray  # of shape (n, 2)


# How a point of the plane becomes a group of a set, and back.


def vector(p: Points) -> Any:
    return p


def column(p: Points) -> Any:
    """Two groups of one entry each."""
    return p[:, :, None]


def diagonal(p: Points) -> Any:
    """The matrix diag(x, y)."""
    return p[:, :, None] * np.eye(2)


def circulant(p: Points) -> Any:
    """The matrix [[x, y], [y, x]]."""
    return np.stack([p, p[:, ::-1]], axis=1)


def beside(p: Points) -> Any:
    """The matrix [[0, x], [y, 0]]."""
    return p[:, :, None] * np.asarray([[0.0, 1.0], [1.0, 0.0]])


BACK: dict[Callable[[Points], Any], Callable[[Any], Points]] = {
    vector: lambda y: y,
    column: lambda y: y[:, :, 0],
    diagonal: lambda y: y[:, [0, 1], [0, 1]],
    circulant: lambda y: y[:, 0, :],
    beside: lambda y: y[:, [0, 1], [1, 0]],
}
SHOWN = {
    column: "two groups of one entry",
    diagonal: "matrices diag(x, y)",
    circulant: "matrices [[x, y], [y, x]]",
    beside: "matrices [[0, x], [y, 0]]",
}

Drawn = tuple[Any, Callable[[Points], Any]]


def examples() -> dict[str, Drawn]:
    """For each set that has a picture in the plane: one of it, and how points of the plane become its groups."""
    return {
        "Affine": (pg.Affine([[1.0, 2.0]], 1.0), vector),
        "Box": (pg.Box([-1.0, -0.5], [0.5, 1.0]), vector),
        "CappedSimplex": (pg.CappedSimplex(1.0, 0.0, 0.7), vector),
        "Cardinality": (pg.Cardinality(1), vector),
        "Correlation": (pg.Correlation(), circulant),
        "DoublyStochastic": (pg.DoublyStochastic(), circulant),
        "GroupL1Ball": (pg.GroupL1Ball(1.0), column),
        "Halfspace": (pg.Halfspace([1.0, 2.0], 1.0), vector),
        "Hyperplane": (pg.Hyperplane([1.0, -1.0], 0.5), vector),
        "L0Groups": (pg.L0Groups(1), column),
        "L1Ball": (pg.L1Ball(), vector),
        "L1InfBall": (pg.L1InfBall(), column),
        "L1Sphere": (pg.L1Sphere(), vector),
        "L2Ball": (pg.L2Ball(0.8, [0.5, -0.5]), vector),
        "LInfBall": (pg.LInfBall(0.8), vector),
        "Mask": (pg.Mask([True, False], 0.5), vector),
        "MaxNorm": (pg.MaxNorm(1.0, axis=-1), vector),
        "MinMaxNorm": (pg.MinMaxNorm(0.5, 1.2, axis=-1), vector),
        "Monotone": (pg.Monotone(), vector),
        "NonNeg": (pg.NonNeg(), vector),
        "NonPos": (pg.NonPos(), vector),
        "NuclearNorm": (pg.NuclearNorm(), diagonal),
        "Orthogonal": (pg.Orthogonal(), diagonal),
        "Polyhedron": (pg.Polyhedron([[1.0, 1.0], [-1.0, 0.5], [0.2, -1.0]], [1.0, 0.8, 0.9]), vector),
        "PositiveSemidefinite": (pg.PositiveSemidefinite(), circulant),
        "Quantized": (pg.Quantized(0.8), vector),
        "Rank": (pg.Rank(1), circulant),
        "SecondOrderCone": (pg.SecondOrderCone(), vector),
        "Simplex": (pg.Simplex(), vector),
        "SkewSymmetric": (pg.SkewSymmetric(), beside),
        "SparseSimplex": (pg.SparseSimplex(1), vector),
        "SpectralNorm": (pg.SpectralNorm(), circulant),
        "Spectraplex": (pg.Spectraplex(), circulant),
        "SumTo": (pg.SumTo(1.0), vector),
        "Symmetric": (pg.Symmetric(), beside),
        "TotalVariationBall": (pg.TotalVariationBall(0.5), vector),
        "Transport": (pg.Transport([0.7, 0.7], [0.7, 0.7]), circulant),
        "UnitNorm": (pg.UnitNorm(axis=-1), vector),
        "ZeroMean": (pg.ZeroMean(), vector),
    }


# Who else projects onto a set, by the names of its functions or classes there.
PEERS: dict[str, str] = {
    "Affine": "jaxopt, pyproximal",
    "Box": "optax, jaxopt, chop, pyproximal, fastprox",
    "CappedSimplex": "jaxopt (`projection_box_section`)",
    "Cardinality": "pyproximal (l0 ball)",
    "Convex": "TensorFlow Lattice",
    "Concave": "TensorFlow Lattice",
    "DoublyStochastic": "jaxopt (to a tolerance), geoopt (by Sinkhorn, not nearest)",
    "Extensive": "morpholayers",
    "GroupL1Ball": "chop",
    "Halfspace": "optax, jaxopt, pyproximal, fastprox",
    "Hyperplane": "optax, jaxopt, pyproximal, fastprox",
    "L1Ball": "optax, jaxopt, chop, pyproximal, fastprox",
    "L1Sphere": "optax, jaxopt",
    "L2Ball": "optax, jaxopt, chop, pyproximal, fastprox",
    "LInfBall": "optax, jaxopt, chop",
    "MaxNorm": "Keras, torch (`renorm`), optax, jaxopt, chop, pyproximal, fastprox",
    "MinMaxNorm": "Keras",
    "Monotone": "TensorFlow Lattice, fastprox",
    "NonNeg": "Keras, optax, jaxopt, chop, pyproximal, fastprox",
    "NonPos": "morpholayers (with a lower bound)",
    "NuclearNorm": "chop, pyproximal, fastprox",
    "Orthogonal": "geoopt; geotorch (as a reparametrisation)",
    "Polyhedron": "jaxopt (by OSQP)",
    "PositiveSemidefinite": "fastprox; geotorch (as a reparametrisation)",
    "Quantized": "morpholayers (`Rounding`)",
    "Rank": "geotorch (as a reparametrisation)",
    "SecondOrderCone": "chop, fastprox",
    "Simplex": "optax, jaxopt, chop, pyproximal, fastprox",
    "SkewSymmetric": "geotorch (as a reparametrisation)",
    "SparseSimplex": "jaxopt",
    "SpectralNorm": "fastprox; torch (`spectral_norm` forces 1, as a reparametrisation)",
    "StructuringElement": "morpholayers",
    "Symmetric": "geotorch (as a reparametrisation)",
    "Transport": "jaxopt (to a tolerance)",
    "Unimodal": "TensorFlow Lattice",
    "UnitNorm": "Keras, optax, geotorch, geoopt",
}


def sets() -> dict[str, type]:
    """The sets that projgrad exports, by name."""
    found = {name: thing for name, thing in vars(pg).items() if isinstance(thing, type)}
    return {name: kind for name, kind in sorted(found.items()) if kind.__module__.startswith("projgrad.sets.")}


def about(kind: type) -> dict[str, str]:
    """What the docstring of a set says: the formula, whether it is convex, how it is computed, the cost, the source."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    first = re.match(r"(.*?)(?= (?:Not convex|Convex)\b)", text)
    facts = re.search(r"(?P<convex>Not convex|Convex)[^.:]*[.:] (?P<method>.*?) Cost: (?P<cost>.*?)\.(?= |$)", text)
    metric = re.search(r" In a metric: (.*?)(?<!\b[A-Z])\.(?= [A-Z`]|$)", text)
    source = re.search(r"Source: (.*)$", text)
    if first is None or facts is None:
        raise ValueError(f"the docstring of {kind.__name__} lacks its line 'Convex. Exact: ... Cost: ...'")
    return {
        "set": first.group(1),
        "convex": "yes" if facts["convex"] == "Convex" else "no",
        "method": facts["method"].rstrip("."),
        "cost": facts["cost"],
        "metric": "the same" if getattr(kind, "axis", None) == () else metric.group(1) if metric else "",
        "source": source.group(1) if source else "",
    }


def page(drawn: dict[str, Drawn]) -> str:
    """The text of the page."""
    lines = [
        "# The sets",
        "",
        "Made by `python examples/catalogue.py --out examples/catalogue` from the docstrings. Every set runs on NumPy",
        "and whatever follows the array API standard, PyTorch (as a function, in place and compiled), JAX, TensorFlow",
        "and Keras, in float16, bfloat16, float32 and float64, for all groups at once along any axes. In the pictures",
        "the set is blue, and lines lead from points to their nearest ones.",
        "",
        "| set | convex | exact | in a metric | who else has it |",
        "| --- | --- | --- | --- | --- |",
    ]
    facts = {name: about(kind) for name, kind in sets().items()}
    for name, fact in facts.items():
        exact = "yes" if fact["method"].startswith("Exact") else "to a tolerance"
        metric = {"": "no", "the same": "the same"}.get(fact["metric"], "yes")
        lines.append(f"| [{name}](#{name.lower()}) | {fact['convex']} | {exact} | {metric} | {PEERS.get(name, '')} |")
    for name, fact in facts.items():
        lines += ["", f"## {name}", "", f"`{_call(name)}`", "", fact["set"].replace("``", "`"), ""]
        if name in drawn:
            constraint, layout = drawn[name]
            where = f", for {SHOWN[layout]}" if layout in SHOWN else ""
            lines += [f"![{name}]({name}.png)", "", f"`{constraint}`{where}", ""]
        lines += [f"- Convex: {fact['convex']}", f"- {fact['method'].replace('``', '`')}", f"- Cost: {fact['cost']}"]
        lines += [f"- In a metric: {fact['metric'].replace('``', '`')}"] if fact["metric"] else []
        lines += [f"- Also in: {PEERS[name]}"] if name in PEERS else []
        lines += [f"- Source: {fact['source']}"] if fact["source"] else []
    return "\n".join(lines) + "\n"


def _call(name: str) -> str:
    signature = inspect.signature(getattr(pg, name))
    given = [str(p.replace(annotation=inspect.Parameter.empty)) for p in signature.parameters.values()]
    return f"{name}({', '.join(given)})"


def draw(name: str, constraint: Any, layout: Callable[[Points], Any]) -> Any:
    """The set in the plane, and some points with their nearest ones."""
    side = np.linspace(-REACH, REACH, 241)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    to = lambda p: BACK[layout](np.asarray(constraint.project(layout(p))))  # noqa: E731
    away = np.linalg.norm(grid - to(grid), axis=1).reshape(241, 241)
    figure, axes = plt.subplots(figsize=(2.6, 2.6), dpi=72, layout="constrained")
    axes.contourf(side, side, away, levels=[-1, 0.02], colors=["#4c86c6"])
    axes.contour(side, side, away, levels=np.linspace(0.25, 3, 12), colors="#cccccc", linewidths=0.5)
    angles = np.linspace(0.2, 0.2 + 2 * np.pi, 14, endpoint=False)
    start = 1.75 * np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.where(np.arange(14) % 2, 1, 0.62)[:, None]
    end = to(start)
    for p, q in zip(start, end, strict=True):
        axes.plot(*zip(p, q, strict=True), color="#d1495b", linewidth=0.9)
    axes.plot(*start.T, "o", color="#d1495b", markersize=2.2)
    axes.plot(*end.T, "o", color="black", markersize=2.8)
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", title=name)
    axes.title.set_fontsize(9)
    axes.tick_params(labelsize=6)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("catalogue-numpy"), help="the folder (default: %(default)s)")
    out: Path = parser.parse_args(arguments).out
    common.check_out(parser, out / "README.md")
    drawn = examples()
    (out / "README.md").write_text(page(drawn))
    for name, (constraint, layout) in drawn.items():
        figure = draw(name, constraint, layout)
        figure.savefig(out / f"{name}.png")
        plt.close(figure)
    print(f"{len(sets())} sets, {len(drawn)} pictures: {out / 'README.md'}")


if __name__ == "__main__":
    main()
