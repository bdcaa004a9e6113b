"""All benchmarks: `python -m benchmarks` from the root of the repository."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import (
    compile_time,
    in_place,
    jax_sets,
    keras_fit,
    max_norm,
    metric,
    page,
    parametrizations,
    record,
    root_steps,
    scaling,
    sequences,
    sparse,
    spectral,
    steps,
    thresholds,
)
from benchmarks.harness import (
    Comparison,
    Result,
    environment,
    goals,
    load,
    measure,
    on_cores,
    overview,
    peak_memory,
    save,
    table,
)

# every benchmark: its comparisons, given whether to be quick
BENCHMARKS: dict[str, Callable[[bool], Iterable[Comparison]]] = {
    "max_norm": max_norm.comparisons,
    "in_place": in_place.comparisons,
    "metric": metric.comparisons,
    "adam_step": metric.steps,
    "record": record.comparisons,
    "root_steps": root_steps.comparisons,
    "thresholds": thresholds.comparisons,
    "spectral": spectral.comparisons,
    "sequences": sequences.comparisons,
    "sparse": sparse.comparisons,
    "parametrizations": parametrizations.comparisons,
    "scaling": scaling.comparisons,
    "gpt2_step": steps.gpt2_step,
    "small_tensors": steps.small_tensors,
    "nothing_to_project": steps.nothing_to_project,
    "jax_sets": jax_sets.comparisons,
    "optax_steps": jax_sets.steps,
    "keras_fit": keras_fit.comparisons,
    "compile_time": compile_time.comparisons,
}


# what has a table of its own, and another plot
SHOWN: dict[str, tuple[Callable[[Sequence[Result]], str], Callable[[Sequence[Result], Path], None]]] = {
    "scaling": (scaling.fits, scaling.draw),
}


def draw(results: Sequence[Result], path: Path) -> None:
    """A row per job, a column per number of threads, a bar per candidate: its time over that of the first reference."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles, threads = list(dict.fromkeys(r.title for r in results)), list(dict.fromkeys(r.threads for r in results))
    height = sum(len(r.timings) + 2 for r in results) / len(threads)
    size = (3 + 4.5 * len(threads), 0.22 * height + 0.5)
    figure, axes = plt.subplots(
        len(titles), len(threads), figsize=size, layout="constrained", squeeze=False, sharex=True, sharey="row"
    )
    for result in results:
        ax = axes[titles.index(result.title), threads.index(result.threads)]
        reference = next(iter(result.timings[0].ratios))
        names = [t.name for t in result.timings]
        ratios = [t.ratios[reference] for t in result.timings]
        colours = [
            "#BBBBBB" if n.startswith("floor") else "#0072B2" if r < 1 else "#E69F00"
            for n, r in zip(names, ratios, strict=True)
        ]
        bars = ax.barh(names, [r - 1 for r in ratios], left=1, color=colours)
        for bar, ratio in zip(bars, ratios, strict=True):
            ax.annotate(
                f"{ratio:.2f}",
                (ratio, bar.get_y() + bar.get_height() / 2),
                xytext=(4 if ratio >= 1 else -4, 0),
                textcoords="offset points",
                ha="left" if ratio >= 1 else "right",
                va="center",
                fontsize=8,
            )
        ax.axvline(1, color="black", lw=1)
        ax.set_xscale("log")
        ax.margins(x=0.15)
        ax.tick_params(labelsize=8)
        number = f"threads: {result.threads}"
        if result.threads == threads[0]:
            ax.set_title(f"{result.title}; {number}", fontsize=8, loc="left")
        else:  # at the right, as titles may be longer than a column is wide
            ax.set_title(number, fontsize=8, loc="right")
        ax.spines[["top", "right"]].set_visible(False)
        if not ax.yaxis_inverted():
            ax.invert_yaxis()
    for ax in axes[-1]:
        ax.set_xlabel(f"time / time of {reference}: faster to the left, slower to the right", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each candidate (default: 30)")
    parser.add_argument(
        "--quick", action="store_true", help="small arrays and few of them, to see that everything runs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_name("results"),
        help="folder for a JSON and a PNG per benchmark",
    )
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BENCHMARKS)}")

    about = environment() | {"quick": args.quick}
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['processor']}, {about['cores']} cores, Python {about['python']}, {versions}\n", flush=True)
    names = args.names or list(BENCHMARKS)
    args.out.mkdir(parents=True, exist_ok=True)
    for threads in args.threads:
        with on_cores(threads):
            for name in names:
                found = []
                for comparison in BENCHMARKS[name](args.quick):
                    result = measure(comparison, threads=threads, rounds=args.rounds, memory=peak_memory)
                    found.append(result)
                    title = f"{result.title}; threads: {threads}; median of {args.rounds}"
                    print(f"{title}\n\n{table(result)}\n", flush=True)
                save(found, args.out / f"{name}.json", about)

    for name in names:
        found = load(args.out / f"{name}.json")[1]
        print(f"{name}, times as multiples of the first:\n\n{overview(found)}\n")
        if reached := goals(found):
            print(f"{name}, projgrad's time as a multiple of others:\n\n{reached}\n")
        if name in SHOWN:
            print(f"{SHOWN[name][0](found)}\n")
        SHOWN.get(name, (None, draw))[1](found, args.out / f"{name}.png")
    page.write(args.out, BENCHMARKS)
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
