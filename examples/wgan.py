"""The critic of a Wasserstein GAN, with clipped weights and with bounded spectral norms: `python examples/wgan.py`.

The Wasserstein-1 distance of two samples is the largest mean difference of a function of slope 1 at most. A critic that
looks for it must not be steeper. The paper clips all its parameters, here the weights, as biases change no bound of the
slope, to a box: `Box(-c, c)`; a bound on the spectral norm of every layer bounds the slope itself. In the plane the
distance can be computed exactly (an assignment problem), so one sees how much of it a critic finds, and how far a
generator trained against it gets.

A critic proves its mean difference over the product of its spectral norms. Found, of a distance of 1.386: 0.08 and
0.38 in boxes of 0.01 and 0.1, 0.72 by `SpectralNorm(1)` with ReLU, 1.13 (81 %) with MaxMin, which is not all either.
After 400 steps the generators against it are at 0.39 and find 8 of 8 Gaussians, with ReLU at 0.44 and 4 or 5; with
boxes at 1.85 and none, and 0.66 and 0 or 4 (2 seeds). None is near the 0.12 of two real samples; 400 steps are few.
On the moons they prove 0.03, 0.26, 0.38 and 0.62 of 0.825, and the generators end at 1.29, 0.33, 0.22 and 0.18.
The spectral critics take two to three times as long. All cases share one optimizer and its rate, tuned for none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.datasets import make_moons
from torch import nn
from tqdm import tqdm

import projgrad as pg
from projgrad.torch import ProjectedOptimizer

SPREAD = 0.08  # of each of the Gaussians
CENTRES = 2 * np.array([[math.cos(a), math.sin(a)] for a in np.arange(8) * math.pi / 4])


class MaxMin(nn.Module):
    """Pairs of units in order of size, which loses nothing of a gradient (Anil, Lucas and Grosse, ICML 2019)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(one, other), torch.minimum(one, other)], dim=1)


# label: the activation and the constraint of every weight of the critic
CASES: dict[str, tuple[type[nn.Module], pg.Constraint]] = {
    "Box(-0.01, 0.01), ReLU": (nn.ReLU, pg.Box(-0.01, 0.01)),
    "Box(-0.1, 0.1), ReLU": (nn.ReLU, pg.Box(-0.1, 0.1)),
    "SpectralNorm(1), ReLU": (nn.ReLU, pg.SpectralNorm(1.0)),
    "SpectralNorm(1), MaxMin": (MaxMin, pg.SpectralNorm(1.0)),
}


class Found(NamedTuple):
    """Of one case: the critic of two samples with its numbers, and what the generators made, one per seed."""

    critic: nn.Module
    product: float
    steepest: float
    difference: float
    samples: list[np.ndarray]
    seconds: float


def real(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """A sample of eight Gaussians on a circle, or of two moons."""
    if kind == "moons":
        points = make_moons(count, noise=0.05, random_state=int(rng.integers(2**31)))[0]
        return 1.5 * (points - [0.5, 0.25])
    return CENTRES[rng.integers(0, 8, count)] + SPREAD * rng.standard_normal((count, 2))


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Wasserstein-1 distance of two samples of equal size: the mean length of the best assignment."""
    lengths = cdist(x, y)
    return float(lengths[linear_sum_assignment(lengths)].mean())


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float32)


def network(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), activation()]
    return nn.Sequential(*layers[:-1])


def weights(critic: nn.Module) -> list[torch.Tensor]:
    return [layer.weight for layer in critic.children() if isinstance(layer, nn.Linear)]


def critic_of(label: str, width: int, rate: float) -> tuple[nn.Sequential, ProjectedOptimizer]:
    """A critic of the plane and its optimizer; the first projection takes place here."""
    activation, constraint = CASES[label]
    critic = network([2, width, width, width, 1], activation)
    for weight in weights(critic):
        nn.init.orthogonal_(weight)
    adam = torch.optim.Adam(critic.parameters(), lr=rate, betas=(0.5, 0.9))
    return critic, ProjectedOptimizer(adam, {"*.weight": constraint}, model=critic)


def ascend(critic: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """One step towards a larger mean difference."""
    optimizer.zero_grad()
    (critic(y).mean() - critic(x).mean()).backward()
    optimizer.step()


def slopes(critic: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """The length of the gradient at every point."""
    points = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points)
    return gradient.norm(dim=1)


def estimate(
    label: str, x: torch.Tensor, y: torch.Tensor, steps: int, width: int, bar: tqdm
) -> tuple[nn.Module, float, float, float]:
    """A critic of two samples, the product of its spectral norms, its steepest slope seen, and the mean difference."""
    critic, optimizer = critic_of(label, width, 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer.inner, 1.0, 0.0, steps)
    for _ in range(steps):
        ascend(critic, optimizer, x, y)
        schedule.step()
        bar.update()
    product = math.prod(float(torch.linalg.matrix_norm(weight.detach().double(), 2)) for weight in weights(critic))
    between = torch.rand(len(x), 1)
    steepest = float(slopes(critic, torch.cat([x, y, between * x + (1 - between) * y])).max())
    return critic, product, steepest, float((critic(x).mean() - critic(y).mean()).detach())


def generate(label: str, sample: Callable[[int], torch.Tensor], steps: int, width: int, bar: tqdm) -> np.ndarray:
    """1,000 points of a generator trained against a critic, which takes 5 steps to each of its own."""
    critic, optimizer = critic_of(label, width, 1e-3)
    generator = network([4, width, width, 2], nn.ReLU)
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    schedules = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.05, steps) for o in (adam, optimizer.inner)]
    for _ in range(steps):
        for _ in range(5):
            with torch.no_grad():
                made = generator(torch.randn(256, 4))
            ascend(critic, optimizer, sample(256), made)
        adam.zero_grad()
        (-critic(generator(torch.randn(256, 4))).mean()).backward()
        adam.step()
        for schedule in schedules:
            schedule.step()
        bar.update()
    with torch.no_grad():
        return generator(torch.randn(1000, 4)).numpy()


def modes(points: np.ndarray) -> tuple[int, float]:
    """How many Gaussians got a quarter of their share at least, and the share of points within 4 deviations of one."""
    away = cdist(points, CENTRES)
    near = away.min(1) < 4 * SPREAD
    counts = np.bincount(away.argmin(1)[near], minlength=8)
    return int((counts >= len(points) / 32).sum()), float(near.mean())


def draw(cases: dict[str, Found], x: np.ndarray, y: np.ndarray, fresh: np.ndarray, exact: float, path: Path) -> None:
    """Above the critics of two samples as landscapes, below what the generators of the first seed made."""
    figure, axes = plt.subplots(2, len(cases), figsize=(3.1 * len(cases), 6.5), layout="constrained", squeeze=False)
    reach = 2.8
    ticks = np.linspace(-reach, reach, 120)
    plane = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    for (upper, lower), (label, found) in zip(axes.T, cases.items(), strict=True):
        with torch.no_grad():
            height = found.critic(tensor(plane)).reshape(len(ticks), -1).numpy() / found.product
        upper.imshow(
            height, cmap="RdBu_r", alpha=0.75, origin="lower", extent=(-reach, reach) * 2, interpolation="bilinear"
        )
        upper.contour(ticks, ticks, height, levels=22, colors="white", linewidths=0.7, linestyles="-")
        upper.plot(*x[::3].T, ".", color="#7A0403", ms=3, label="real")
        upper.plot(*y[::3].T, ".", color="#1B2A6B", ms=3, label="fake")
        upper.set_title(f"{label}\nproves {found.difference / found.product:.3g} of {exact:.2f}", fontsize=10)
        lower.plot(*fresh.T, ".", color="#BBBBBB", ms=4, label="real")
        lower.plot(*found.samples[0].T, ".", color="#D55E00", ms=2.5, alpha=0.7, label="generated")
        lower.set_title(f"distance {distance(found.samples[0], fresh):.3f}", fontsize=10)
    axes[0, 0].legend(fontsize=8, loc="upper left", markerscale=2)
    axes[1, 0].legend(fontsize=8, loc="upper left", markerscale=2)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("wgan", __doc__, "torch")
    parser.add_argument("--data", choices=["gaussians", "moons"], default="gaussians")
    parser.add_argument("--critic-steps", type=common.count, default=800, help="of a critic of two fixed samples")
    parser.add_argument("--steps", type=common.count, default=400, help="of a generator; its critic takes 5 to each")
    parser.add_argument("--seeds", type=common.count, default=2)
    parser.add_argument("--width", type=common.count, default=64, help="a multiple of two")
    parser.add_argument("--points", type=common.count, default=512, help="of each of the two fixed samples")
    args = common.parse(parser, argv, critic_steps=60, steps=10, seeds=1, width=16, points=64)
    if args.width % 2:
        parser.error("--width must be a multiple of two, as MaxMin takes pairs")
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, y = real(args.data, args.points, rng), 0.5 * rng.standard_normal((args.points, 2))
    fresh, other = real(args.data, 1000, rng), real(args.data, 1000, rng)
    exact = distance(x, y)

    cases: dict[str, Found] = {}
    begin = time.perf_counter()
    with tqdm(total=len(CASES) * (args.critic_steps + args.seeds * args.steps), unit="step", smoothing=0.02) as bar:
        for label in CASES:
            bar.set_description(label)
            torch.manual_seed(0)
            critic = estimate(label, tensor(x), tensor(y), args.critic_steps, args.width, bar)
            samples, start = [], time.process_time()
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                source = np.random.default_rng(seed)
                samples.append(
                    generate(label, lambda n: tensor(real(args.data, n, source)), args.steps, args.width, bar)  # noqa: B023
                )
            cases[label] = Found(*critic, samples, (time.process_time() - start) / args.seeds)
    seconds = time.perf_counter() - begin

    header = ["weights of the critic", "proven distance", "of the exact one", "by the steepest slope seen"]
    header += ["generated: distance", "seconds (CPU)"]
    rows = [header + (["modes", "near a mode"] if args.data == "gaussians" else [])]
    for label, found in cases.items():
        proven = found.difference / found.product
        row = [label, f"{proven:.3g}", f"{proven / exact:.1%}", f"{found.difference / found.steepest:.3g}"]
        row += [common.spread([distance(s, fresh) for s in found.samples]), f"{found.seconds:.0f}"]
        if args.data == "gaussians":
            counts, shares = zip(*map(modes, found.samples), strict=True)
            row += [", ".join(map(str, counts)), common.spread(shares, 2)]
        rows.append(row)
    print(f"\nThe exact distance of the two samples is {exact:.4f}; of two real samples it is ", end="")
    print(f"{distance(fresh, other):.3f}. {args.seeds} generators each, {seconds:.0f} s.\n")
    print(common.table(rows))
    draw(cases, x, y, fresh, exact, args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
