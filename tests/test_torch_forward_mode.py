"""Derivatives in forward mode agree with those in reverse mode: ``<w, J v> = <J' w, v>``, for every set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad

from tests.cases import all_cases


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: repr(case.constraint))
def test_forward_mode_agrees_with_reverse_mode(case: Any) -> None:
    x = torch.from_numpy(case.groups(0, case.shapes[-1])).double()
    rng = np.random.default_rng(0)
    v, w = (torch.from_numpy(rng.standard_normal(tuple(x.shape))) for _ in range(2))
    (pulled,) = torch.autograd.grad((case.constraint.project(x.requires_grad_()) * w).sum(), x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), v)
        pushed = forward_ad.unpack_dual(case.constraint.project(dual)).tangent
    assert pushed is not None
    scale = 1e-6 * (1 + float(v.norm() * w.norm()))
    assert abs(float((pushed * w).sum() - (pulled * v).sum())) < scale
