"""The quicker ways around a decomposition, on large matrices whose singular values or eigenvalues are known."""

from __future__ import annotations

import array_api_compat.numpy
import numpy as np
import pytest

import projgrad as pg
from projgrad.coupled import Coupled
from projgrad.namespace import native
from projgrad.sets import decomposition, shortcuts, subspace
from tests.frameworks import IN_PLACE, JAX, NUMPY, TENSORFLOW, TORCH, TORCH_GRAPH, Framework

N = 400
some = [
    pytest.param(
        f,
        dtype,
        id=f"{f}-{dtype}",
        marks=() if (f, dtype) in ((NUMPY, "float64"), (TORCH, "float32")) else pytest.mark.slow,
    )
    for f in (NUMPY, TORCH, IN_PLACE)
    for dtype in ("float32", "float64")
]
quick = pytest.mark.parametrize(("framework", "dtype"), some, indirect=["framework"])
slow_jax = pytest.param(JAX, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "_LARGE", 64)
    for module in (shortcuts, subspace):
        monkeypatch.setattr(module, "WIDE", N // 2)


def turns(m: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices with orthonormal columns, as many as the smaller side."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((side, min(m, n))))[0] for side in (m, n))
    return u, v


def tolerance(constraint: Coupled, x: np.ndarray, dtype: str) -> float:
    return constraint.accuracy * pg.tolerance(dtype, x.size, np.linalg.norm(x))


def values(kind: str, k: int) -> np.ndarray:
    """Singular values for a bound of 1."""
    spread, rng = np.linspace(0.0, 0.9, k), np.random.default_rng(1)
    return {
        "none": np.linspace(0.1, 0.999, k),
        "at the bound": np.ones(k),
        "around the bound": 1 + 1e-6 * rng.standard_normal(k),
        "few": np.concatenate([spread[:-20], np.linspace(1.05, 1.5, 20)]),
        "few, far": np.concatenate([spread[:-5], np.geomspace(1.01, 4, 5)]),
        "few, close": np.concatenate([spread[:-9], 1 + np.geomspace(1e-5, 1e-2, 9)]),
        "one": np.concatenate([np.zeros(k - 1), [3.0]]),
        "half": np.linspace(0.0, 2.0, k),
        "all": np.linspace(1.1, 2.0, k),
        "all, wide": np.geomspace(1.001, 30.0, k),
        "wide": np.geomspace(1e-6, 1e3, k),
        "equal": np.full(k, 7.0),
        "zero": np.zeros(k),
    }[kind]


KINDS = [
    *("none", "at the bound", "around the bound", "few", "few, far", "few, close", "one"),
    *("half", "all", "all, wide", "wide", "equal", "zero"),
]


@quick
@pytest.mark.parametrize("kind", KINDS)
def test_clipped_values(framework: Framework, kind: str, dtype: str) -> None:
    constraint = pg.SpectralNorm(1.0)
    for m, n in ((N, N), (70, 90)):
        (u, v), s = turns(m, n), values(kind, min(m, n))
        x = framework.make((u * s) @ v.T, dtype)
        y = framework.project(constraint, x)
        found, stored = framework.read(y), framework.read(x)
        assert np.linalg.norm(found - (u * np.minimum(s, 1)) @ v.T) <= tolerance(constraint, stored, dtype)
        assert np.array_equal(framework.read(framework.project(constraint, y)), found)
        assert constraint.contains(y)
        if kind in ("none", "at the bound", "zero"):
            assert np.array_equal(found, stored)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 30, N])
def test_what_is_left_alone_is_in_the_set(count: int, dtype: str) -> None:
    """A little above the bound, on both sides of what can be told."""
    (u, v), constraint = turns(N, N), pg.SpectralNorm(1.0)
    for excess in np.geomspace(0.3, 1e4, 8) * np.finfo(dtype).eps:
        for rest in (0.5, 1.0):
            s = np.concatenate([np.full(count, 1 + excess), np.full(N - count, rest)])
            x = ((u * s) @ v.T).astype(dtype)
            y = constraint.project(x)
            assert np.linalg.norm(y - (u * np.minimum(s, 1)) @ v.T) <= tolerance(constraint, x, dtype)
        psd, low = pg.PositiveSemidefinite(), np.concatenate([np.full(count, -excess), np.full(N - count, 1.0)])
        x = ((u * low) @ u.T).astype(dtype)
        assert np.linalg.norm(psd.project(x) - (u * np.maximum(low, 0)) @ u.T) <= tolerance(psd, x, dtype)
        near = ((u * np.where(np.arange(N) < count, 1 + excess, 1.0)) @ v.T).astype(dtype)
        assert np.linalg.norm(pg.Orthogonal().project(near) - u @ v.T) <= tolerance(pg.Orthogonal(), near, dtype)


@pytest.fixture
def no_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    linalg = array_api_compat.numpy.linalg
    eigh = linalg.eigh

    def small(x: np.ndarray) -> object:
        assert x.shape[-1] < N, "a decomposition of the whole matrix"
        return eigh(x)

    monkeypatch.setattr(linalg, "svd", lambda *_, **__: pytest.fail("a decomposition of the whole matrix"))
    monkeypatch.setattr(linalg, "eigh", small)


@pytest.mark.usefixtures("no_decomposition")
@pytest.mark.parametrize("kind", ["none", "at the bound", "few", "few, far", "one", "all", "equal", "zero"])
def test_little_change_takes_no_decomposition(kind: str) -> None:
    u, v = turns(N, N)
    s = values(kind, N)
    if kind == "equal":
        s = s / 6
    pg.SpectralNorm(1.0).project(((u * s) @ v.T).astype("float32"))
    if kind in ("none", "few"):
        pg.PositiveSemidefinite().project(((u * (0.999 - s)) @ u.T).astype("float32"))
    if kind == "none":
        for off in (0.0, 1e-4, 1e-3, 1e-2):
            x = u @ v.T + off * np.random.default_rng(0).standard_normal((N, N))
            pg.Orthogonal().project(x.astype("float32"))


@quick
def test_raised_eigenvalues(framework: Framework, dtype: str) -> None:
    for n, kind, least in [*((N, kind, 0.0) for kind in KINDS), (N, "few", 0.5), (N, "half", -0.25), (70, "few", 0.0)]:
        q, constraint = turns(n, n)[0], pg.PositiveSemidefinite(least)
        low = least + 1 - values(kind, n)
        given = (q * low) @ q.T
        x = framework.make((given + given.T) / 2, dtype)
        y = framework.project(constraint, x)
        found = framework.read(y)
        expected = (q * np.maximum(low, least)) @ q.T
        assert np.linalg.norm(found - expected) <= tolerance(constraint, framework.read(x), dtype)
        assert np.array_equal(found, found.T)
        assert np.array_equal(framework.read(framework.project(constraint, y)), found)


@quick
@pytest.mark.parametrize("shape", [(N, N), (70, 90), (150, 80)])
def test_polar_factors(framework: Framework, shape: tuple[int, int], dtype: str) -> None:
    (u, v), constraint, k = turns(*shape), pg.Orthogonal(), min(shape)
    rng = np.random.default_rng(2)
    for off in (0.0, 1e-7, 1e-3, 1e-2, 0.1, 0.5, 0.99):
        for s in (1 + off * rng.uniform(-1, 1, k), np.where(np.arange(k) == 0, 1 - off, 1.0), np.full(k, 1 + 9 * off)):
            x = framework.make((u * s) @ v.T, dtype)
            y = framework.project(constraint, x)
            found, t = framework.read(y), tolerance(constraint, framework.read(x), dtype)
            assert np.linalg.norm(found - u @ v.T) <= t
            assert np.array_equal(framework.read(framework.project(constraint, y)), found)


@quick
@pytest.mark.parametrize("shape", [(N, N), (70, 90), (150, 80)])
def test_shrunk_values(framework: Framework, shape: tuple[int, int], dtype: str) -> None:
    (u, v), k = turns(*shape), min(shape)
    for s in (np.linspace(2, 0, k), np.geomspace(10, 1e-3, k), np.ones(k), np.linspace(1, 0.5, k), np.zeros(k)):
        for part in (0.1, 0.9, 1.0):
            constraint = pg.NuclearNorm(part * s.sum())
            t = max((s[: i + 1].sum() - constraint.radius) / (i + 1) for i in range(k))
            x = framework.make((u * s) @ v.T, dtype)
            y = framework.project(constraint, x)
            found = framework.read(y)
            expected = (u * np.maximum(s - max(t, 0.0), 0)) @ v.T
            assert np.linalg.norm(found - expected) <= tolerance(constraint, framework.read(x), dtype)
            assert np.array_equal(framework.read(framework.project(constraint, y)), found)


@pytest.mark.parametrize("framework", [NUMPY, TORCH, slow_jax], ids=repr, indirect=True)
def test_half_of_a_product(framework: Framework) -> None:
    rng = np.random.default_rng(0)
    for n in (5, 512, 700):
        a = rng.standard_normal((2, 9, n))
        b = a * rng.standard_normal((2, 9, 1))
        x, y = (framework.make(given, "float64") for given in (a, b))
        xp = native(x)[1]
        expected = np.einsum("bki,bkj->bij", a, b)
        np.testing.assert_allclose(framework.read(decomposition.half_product(x, y, xp)), expected, rtol=0, atol=1e-12)
        square = rng.standard_normal((2, n, n))
        part = framework.read(decomposition.symmetric_part(framework.make(square, "float64"), xp))
        np.testing.assert_array_equal(part, (square + np.swapaxes(square, 1, 2)) / 2)


@pytest.mark.parametrize("kind", ["half", "all", "wide", "few"])
def test_what_is_not_few_is_not_searched_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (u, v), s, steps = turns(N, N), values(kind, N), []
    krylov = subspace._krylov

    def counted(g: np.ndarray, basis: tuple[np.ndarray, np.ndarray] | None, count: int, xp: object) -> object:
        steps.append(count)
        return krylov(g, basis, count, xp)  # type: ignore[arg-type]

    monkeypatch.setattr(subspace, "_krylov", counted)
    pg.SpectralNorm(1.0).project(((u * s) @ v.T).astype("float32"))
    pg.PositiveSemidefinite().project(((u * (1 - s)) @ u.T).astype("float32"))
    assert max(steps) == (subspace._ALL - subspace._SOME if kind == "few" else subspace._FIRST)


@quick
def test_odd_matrices(framework: Framework, dtype: str) -> None:
    """Those in which a subspace is soon exhausted, or which a random one hardly meets."""
    e = np.eye(N)
    some = np.where(np.arange(N) < 3, 2.0, 0.5)
    cases = [
        np.ones((N, N)) / N * 3,
        np.diag(some),
        np.diag(np.linspace(0, 1.3, N)),
        2 * e[::-1],
        np.kron(e[:40, :40], np.ones((10, 10)) / 5),
    ]
    for x in cases:
        u, s, vt = np.linalg.svd(x)
        for scale in (1e-30, 1.0, 1e30):
            constraint = pg.SpectralNorm(scale)
            found = framework.read(framework.project(constraint, framework.make(x * scale, dtype))) / scale
            assert np.linalg.norm(found - (u * np.minimum(s, 1)) @ vt) <= tolerance(constraint, x, dtype)


@pytest.mark.parametrize("steps", range(1, 5))
def test_a_subspace_that_is_too_small(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("_FIRST", steps), ("_SOME", steps), ("_ALL", steps + 1)):
        monkeypatch.setattr(subspace, name, number)
    u, v = turns(N, N)
    for rest in (0.1, 0.3, 0.5, 0.8):
        for above in ([1.5], [1.1, 2.0, 3.0]):
            s = np.concatenate([above, np.linspace(rest, 0, N - len(above))])
            x = ((u * s) @ v.T).astype("float32")
            y = pg.SpectralNorm(1.0).project(x)
            assert np.linalg.norm(y - (u * np.minimum(s, 1)) @ v.T) <= tolerance(pg.SpectralNorm(), x, "float32")


@pytest.mark.parametrize("largest", [0.9, 4.0])
def test_a_value_that_the_subspace_misses(largest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace, "_SOME", 4)
    start = np.asarray(subspace._start(N))
    hidden = np.linalg.qr(np.concatenate([start, turns(N, 1)[0]], axis=1))[0][:, -1:]
    u, v = turns(N, N)[0], np.linalg.qr(np.concatenate([hidden, turns(N, N)[0][:, 1:]], axis=1))[0]
    s = np.concatenate([[1.2], np.full(5, largest), np.full(N - 6, 0.8)])
    x = ((u * s) @ v.T).astype("float32")
    y = pg.SpectralNorm(1.0).project(x)
    assert np.linalg.norm(y - (u * np.minimum(s, 1)) @ v.T) <= tolerance(pg.SpectralNorm(), x, "float32")


@quick
def test_a_batch_of_different_matrices(framework: Framework, dtype: str) -> None:
    u, v = turns(70, 90)
    kinds = ["none", "few", "all", "wide", "zero", "at the bound"]
    s = np.stack([values(kind, 70) for kind in kinds])
    x = (u * s[:, None, :]) @ v.T
    found = framework.read(framework.project(pg.SpectralNorm(1.0), framework.make(x, dtype)))
    for kind, group, y, best in zip(kinds, x, found, (u * np.minimum(s, 1)[:, None, :]) @ v.T, strict=True):
        assert np.linalg.norm(y - best) <= tolerance(pg.SpectralNorm(), group, dtype)
        if kind in ("none", "zero"):
            assert np.array_equal(y, group.astype(dtype))


@pytest.mark.parametrize(
    "framework", [TORCH_GRAPH, slow_jax, pytest.param(TENSORFLOW, marks=pytest.mark.slow)], ids=repr, indirect=True
)
def test_compiled(framework: Framework) -> None:
    assert framework.compile is not None
    (u, v), constraint = turns(N, N), pg.SpectralNorm(1.0)
    compiled = framework.compile(constraint.project)
    for kind in ("none", "few", "half", "all", "wide"):
        s = values(kind, N)
        x = framework.make((u * s) @ v.T, "float32")
        found, t = framework.read(compiled(x)), tolerance(constraint, framework.read(x), "float32")
        assert np.linalg.norm(found - (u * np.minimum(s, 1)) @ v.T) <= t


@pytest.mark.parametrize("framework", [NUMPY, TORCH, slow_jax], ids=repr, indirect=True)
def test_a_bound_on_eigenvalues(framework: Framework) -> None:
    for n in (3, 300, 600):
        q = turns(n, n)[0]
        for top in (0.5, 0.999, 1.001, 5.0):
            s = np.linspace(-3, top, n)
            lower = np.tril((q * s) @ q.T) + np.triu(np.ones((n, n)), 1)  # which is not read
            x = framework.make(np.stack([lower, np.tril(lower)]), "float64")
            found = native(x)[1].is_below(x, framework.make(np.ones((2, 1, 1)), "float64"))
            assert np.asarray(found).shape == (2, 1, 1)
            assert (framework.read(found) == (top < 1)).all()


@pytest.mark.parametrize("framework", [TORCH, slow_jax], ids=repr, indirect=True)
@pytest.mark.parametrize(
    "constraint", [pg.SpectralNorm(1.0), pg.NuclearNorm(9.0), pg.Orthogonal(), pg.PositiveSemidefinite()], ids=repr
)
def test_derivatives(framework: Framework, constraint: pg.Constraint) -> None:
    assert framework.gradient is not None
    rng = np.random.default_rng(3)
    x = (turns(64, 64)[0] * values("few", 64)) @ turns(64, 64, 4)[0].T
    x = x + 0.01 * rng.standard_normal(x.shape)
    direction, weights = rng.standard_normal((2, *x.shape))
    h = 1e-6
    ends = [(constraint.project(x + sign * h * direction) * weights).sum() for sign in (-1, 1)]
    with framework.scope():
        found = framework.gradient(constraint.project, framework.make(x, "float64"), framework.make(weights, "float64"))
        slope = (framework.read(found) * direction).sum()
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / (2 * h), rtol=1e-5)


def test_what_torch_transforms_is_not_looked_at() -> None:
    torch = pytest.importorskip("torch")
    u, v = turns(70, 70)
    x = torch.tensor(np.stack([(u * values(kind, 70)) @ v.T for kind in ("none", "few")]))
    found = torch.func.vmap(pg.SpectralNorm(1.0).project)(x)
    np.testing.assert_allclose(found, pg.SpectralNorm(1.0).project(x), atol=1e-13)
