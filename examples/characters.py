"""A character model whose weights all have unit norm: nGPT against a plain GPT, `python examples/characters.py`.

In nGPT (Loshchilov et al. 2024, arXiv 2410.01131) everything lies on the sphere: after each step, every matrix is
normalised along its axis of the embedding, and hidden states are moved towards what a layer answers, and normalised:
h = unit(h + alpha * (unit(layer(h)) - h)). Nearest is Euclidean, as in the paper, although the optimizer is Adam.
This trains it with the weights kept in `UnitNorm`, the same network with weights that are free, and a GPT with RMSNorm,
weight decay and warmup, on the English of Python's own manual; prints a table and a sample of each, and draws them.

Found with the defaults (Python 3.11): with the seeds 0 and 1, losses of 1.558 and 1.565 for the GPT, 1.545 and 1.559
for nGPT, 1.528 and 1.574 for nGPT with free weights. So at this size neither the network nor the constraint gains more
than the seeds differ, and a step takes a quarter longer; the paper's factors of 4 to 20 are for models of 0.5 billion
weights and more. What the constraint gives is norms that stay (they grow to 4 without), and dot products of embeddings
that are cosines. At this width, a GPT that starts with GPT-2's deviation of 0.02 is far worse (2.34 rather than 2.01
after 250 steps) than with width**-0.5, as here: such a baseline would have flattered nGPT.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, scaled_dot_product_attention, silu
from tqdm import tqdm

import projgrad as pg
from projgrad.torch import ProjectedOptimizer, project_params, violations

# every matrix along its axis of the embedding: the inputs of a layer, or the outputs of those that lead back to it
RULES: dict[Any, Any] = {
    nn.Linear: {"weight": pg.UnitNorm()},
    nn.Embedding: {"weight": pg.UnitNorm()},
    "*.back.weight": pg.UnitNorm(axis=0),
}


class Case(NamedTuple):
    """How to train; the rates are the best of those that were tried, by factors of two."""

    sphere: bool  # nGPT, or a plain GPT
    project: bool
    rate: float
    decay: float = 0.0
    warmup: float = 0.0  # part of the steps


CASES = {
    "GPT": Case(sphere=False, project=False, rate=8e-3, decay=0.1, warmup=0.1),
    "nGPT": Case(sphere=True, project=True, rate=1.6e-2),
    "nGPT, weights free": Case(sphere=True, project=False, rate=8e-3),
}
COLOURS = dict(zip(CASES, ["#666666", "#0072B2", "#D55E00"], strict=True))


class Scale(nn.Module):
    """Learned factors that start at `first`; `size` is that of the parameter, and so how quickly Adam changes them."""

    def __init__(self, width: int, first: float, size: float) -> None:
        super().__init__()
        self.value, self.factor = nn.Parameter(torch.full((width,), size)), first / size

    def forward(self) -> Tensor:
        return self.value * self.factor


class Attention(nn.Module):
    """Causal attention with rotary positions; on the sphere, of unit queries and keys."""

    turn: Tensor

    def __init__(self, width: int, heads: int, context: int, sphere: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.back = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.scale = Scale(width, 1.0, width**-0.5) if sphere else None
        angle = torch.arange(context)[:, None] / 10000 ** torch.linspace(0, 1, width // heads // 2)
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        q, k = self.rotated(q), self.rotated(k)
        if self.scale is None:
            found = scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scale = self.scale().view(self.heads, 1, -1)
            q, k = normalize(q, dim=-1) * scale, normalize(k, dim=-1) * scale
            found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=q.shape[-1] ** 0.5)
        return self.back(found.transpose(1, 2).flatten(2))

    def rotated(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turn[: x.shape[-2]]).flatten(-2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, sphere: bool) -> None:
        super().__init__()
        hidden = width * 8 // 3
        self.up, self.gate = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.back = nn.Linear(hidden, width, bias=False)
        # a unit vector times a unit row is about width**-0.5, where silu would be nearly linear
        self.scales = nn.ModuleList([Scale(hidden, 1.0, 1.0), Scale(hidden, width**0.5, 1.0)]) if sphere else None

    def forward(self, h: Tensor) -> Tensor:
        up, gate = self.up(h), self.gate(h)
        if self.scales is not None:
            up, gate = up * self.scales[0](), gate * self.scales[1]()
        return self.back(up * silu(gate))


class Residual(nn.Module):
    """A layer whose answer is added to what comes in; on the sphere, a step towards it."""

    def __init__(self, layer: nn.Module, width: int, depth: int, sphere: bool) -> None:
        super().__init__()
        self.layer = layer
        self.part = Scale(width, 1 / depth, width**-0.5) if sphere else nn.RMSNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        if isinstance(self.part, Scale):
            return normalize(h + self.part() * (normalize(self.layer(h), dim=-1) - h), dim=-1)
        return h + self.layer(self.part(h))


class Transformer(nn.Module):
    def __init__(self, symbols: int, width: int, heads: int, context: int, depth: int, sphere: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(symbols, width), nn.Linear(width, symbols, bias=False)
        self.blocks = nn.Sequential()
        for _ in range(depth):
            for layer in (Attention(width, heads, context, sphere), FeedForward(width, sphere)):
                self.blocks.append(Residual(layer, width, depth, sphere))
        self.last = Scale(symbols, 1.0, width**-0.5) if sphere else nn.RMSNorm(width)
        self.context = context
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                shrink = 1.0 if sphere or "back" not in name else (2 * depth) ** -0.5  # as in GPT-2
                nn.init.normal_(weight, std=width**-0.5 * shrink)

    def forward(self, text: Tensor) -> Tensor:
        h = self.embed(text)
        if isinstance(self.last, Scale):  # normalised already, where the embedding is kept on the sphere
            return self.head(self.blocks(normalize(h, dim=-1))) * self.last()
        return self.head(self.last(self.blocks(h)))


def manual() -> tuple[list[str], Tensor, Tensor]:
    """The characters of Python's manual, and the manual in them: to train on, and every twentieth piece to test on."""
    paragraphs = dict.fromkeys(paragraph for page in topics.values() for paragraph in page.split("\n\n"))  # each once
    text = "\n\n".join(paragraphs)
    symbols = sorted(set(text))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    pieces = torch.tensor([number[symbol] for symbol in text]).split(2000)
    kept, held = (torch.cat([p for i, p in enumerate(pieces) if (i % 20 == 19) == out]) for out in (False, True))
    return symbols, kept, held


def matrices(model: nn.Module) -> Iterator[Tensor]:
    """All of them, with the axis of the embedding last."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            yield weight.detach().T if name.endswith("back.weight") else weight.detach()


class Run:
    """One training."""

    def __init__(self, case: Case, symbols: int, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.model = Transformer(symbols, args.width, args.heads, args.context, args.depth, case.sphere)
        if case.sphere:  # both start on the sphere
            project_params(self.model, RULES)
        groups = [
            {"params": [(n, p) for n, p in self.model.named_parameters() if p.ndim == 2], "weight_decay": case.decay},
            {"params": [(n, p) for n, p in self.model.named_parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=case.rate, betas=(0.9, 0.95))
        if case.project:
            self.optimizer = ProjectedOptimizer(self.optimizer, RULES, model=self.model)
        warmup = case.warmup * args.steps

        def rate(step: int) -> float:
            cosine = 0.5 + 0.5 * np.cos(np.pi * min(step / args.steps, 1.0))
            return min(1.0, (step + 1) / (warmup + 1)) * cosine

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.norms: list[np.ndarray] = []

    def step(self, x: Tensor, y: Tensor) -> None:
        begun = time.perf_counter()
        loss = cross_entropy(self.model(x).flatten(0, 1), y.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.seconds.append(time.perf_counter() - begun)

    @torch.no_grad()
    def look(self, x: Tensor, y: Tensor) -> None:
        """Note the loss on text that was held back, and the norms along the embedding."""
        parts = zip(x.split(64), y.split(64), strict=True)
        total = sum(cross_entropy(self.model(a).flatten(0, 1), b.flatten(), reduction="sum").item() for a, b in parts)
        self.losses.append(total / y.numel())
        norms = torch.cat([matrix.norm(dim=1) for matrix in matrices(self.model)]).numpy()
        self.norms.append(np.quantile(norms, [0.0, 0.5, 1.0]))

    @torch.no_grad()
    def write(self, symbols: list[str], start: str, length: int) -> str:
        """Continue a text, each character drawn from the model's probabilities, a little sharpened."""
        torch.manual_seed(0)
        text = torch.tensor([[symbols.index(symbol) for symbol in start]])
        for _ in range(length):
            logits = self.model(text[:, -self.model.context :])[:, -1] / 0.7
            text = torch.cat([text, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return "".join(symbols[i] for i in text[0].tolist())


def train(args: argparse.Namespace) -> tuple[dict[str, Run], list[int], list[str]]:
    """Train all cases on the same batches, one step each in turn, so that times compare; look every so often."""
    symbols, kept, held = manual()
    runs = {name: Run(case, len(symbols), args) for name, case in CASES.items() if name in args.only}
    window = torch.arange(args.context + 1)
    tests = held.unfold(0, args.context + 1, args.context)[: args.tests]
    generator, looks, order = torch.Generator().manual_seed(args.seed), [], list(runs)
    with tqdm(total=args.steps * len(runs), unit="step", smoothing=0.02) as bar:
        for step in range(args.steps + 1):
            if step % max(1, args.steps // 15) == 0 or step == args.steps:
                looks.append(step)
                for run in runs.values():
                    run.look(tests[:, :-1], tests[:, 1:])
                bar.set_postfix({name: f"{run.losses[-1]:.3f}" for name, run in runs.items()})
            if step < args.steps:
                begin = torch.randint(len(kept) - args.context, (args.batch, 1), generator=generator)
                batch, order = kept[begin + window], order[1:] + order[:1]
                for name in order:
                    runs[name].step(batch[:, :-1], batch[:, 1:])
                bar.update(len(runs))
    return runs, looks, symbols


def reached(run: Run, looks: Sequence[int], loss: float) -> str:
    """The step at which a loss was reached, between two looks."""
    for i in range(1, len(looks)):
        if run.losses[i] <= loss:
            before, after = run.losses[i - 1 : i + 1]
            return f"{looks[i - 1] + (before - loss) / (before - after) * (looks[i] - looks[i - 1]):.0f}"
    return "-"


def table(runs: Mapping[str, Run], looks: Sequence[int]) -> str:
    """The results as a Markdown table."""
    first = next(iter(runs))
    goal = runs[first].losses[-1]
    rows = [["model", "parameters", "loss", f"steps to {goal:.3f}", "norms", "violation", "ms per step"]]
    for name, run in runs.items():
        outside = f"{max(violations(run.model, RULES).values()):.0e}" if CASES[name].project else ""
        rows.append(
            [
                name,
                f"{sum(p.numel() for p in run.model.parameters()):,}",
                f"{run.losses[-1]:.3f}",
                reached(run, looks, goal),
                common.interval(run.norms[-1]),
                outside,
                f"{1e3 * float(np.median(run.seconds)):.0f}",
            ]
        )
    return common.table(rows)


def draw(runs: Mapping[str, Run], looks: Sequence[int], symbols: list[str], title: str, path: Path) -> None:
    """The losses, the norms through the training, and which characters the last projected model takes for similar."""
    figure = plt.figure(figsize=(13, 6.4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[6, 7]).ravel()
    loss, norm = left.subplots(2, 1, sharex=True)
    for name, run in runs.items():
        colour, norms = COLOURS[name], np.array(run.norms)
        loss.plot(looks, run.losses, color=colour, label=f"{name}: {run.losses[-1]:.3f}")
        norm.fill_between(looks, norms[:, 0], norms[:, 2], color=colour, alpha=0.15, lw=0)
        norm.plot(looks, norms[:, 1], color=colour, label=name)
    loss.axhline(next(iter(runs.values())).losses[-1], color="#666666", ls=":", lw=1)
    loss.set(ylabel="loss per character (nats)", title="text held back", yscale="log")
    norm.set(xlabel="steps", ylabel="norm", title="norms along the embedding: median and range", yscale="log")
    loss.legend(fontsize=9)
    loss.set_yticks([1.5, 2, 3, 4], ["1.5", "2", "3", "4"])
    norm.set_yticks([0.3, 0.5, 1, 2, 4], ["0.3", "0.5", "1", "2", "4"])
    for ax in (loss, norm):
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.25, which="both")
    names = [name for name in runs if CASES[name].project] or list(runs)
    vectors = normalize(runs[names[0]].model.embed.weight.detach(), dim=1).numpy()
    shown = [i for i, symbol in enumerate(symbols) if symbol.isascii() and symbol.isalnum()]
    shown = [shown[i] for i in leaves_list(linkage(vectors[shown], "average", metric="cosine", optimal_ordering=True))]
    ax = right.subplots()
    image = ax.imshow(vectors[shown] @ vectors[shown].T, cmap="RdBu_r", vmin=-1, vmax=1)
    ticks, labels = range(len(shown)), [symbols[i] for i in shown]
    ax.set_xticks(ticks, labels, fontsize=7.5)
    ax.set_yticks(ticks, labels, fontsize=7.5)
    ax.tick_params(length=0, pad=1)
    ax.set_title(f"{names[0]}: cosines of the embeddings, similar letters side by side", fontsize=11)
    right.colorbar(image, ax=ax, shrink=0.6)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("characters", __doc__, "torch")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="some of the cases")
    parser.add_argument("--steps", type=common.count, default=500)
    parser.add_argument("--batch", type=common.count, default=16)
    parser.add_argument("--context", type=common.count, default=64)
    parser.add_argument("--width", type=common.count, default=64, help="a multiple of twice the heads")
    parser.add_argument("--heads", type=common.count, default=4)
    parser.add_argument("--depth", type=common.count, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(tests=None, length=300)  # all of the text that was held back; characters to write
    tiny = {"steps": 40, "batch": 8, "context": 16, "width": 24, "heads": 2, "depth": 2, "tests": 64, "length": 30}
    args = common.parse(parser, argv, **tiny)
    if args.width % (2 * args.heads):
        parser.error("--width must be a multiple of twice --heads")
    if args.context >= (longest := len(manual()[-1])):
        parser.error(f"--context must be below {longest}, the characters that were held back")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args, begun = parse(argv), time.perf_counter()
    runs, looks, symbols = train(args)
    seconds = time.perf_counter() - begun
    size = f"{args.depth} layers of width {args.width}, {args.steps} steps of {args.batch} x {args.context} characters"
    print(f"\n{size}, {seconds:.0f} s.\n\n{table(runs, looks)}")
    for name, run in runs.items():
        print(f"\n--- {name} writes:\n{run.write(symbols, 'The ', args.length)}")
    draw(runs, looks, symbols, f"Python's manual, character by character: {size}", args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
