"""The trainings of `autoencoder.py` in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from projgrad.torch import ProjectedOptimizer


class Autoencoder(nn.Module):
    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.encoder, self.bias, self.decoder, self.offset = (
            nn.Parameter(torch.tensor(weights[name])) for name in ("encoder", "bias", "decoder", "offset")
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = ((x - self.offset) @ self.encoder.T + self.bias).relu()
        return codes, codes @ self.decoder + self.offset


class Training:
    """One autoencoder and its optimizer."""

    def __init__(self, weights: dict[str, np.ndarray], case: Any, penalty: float, rate: float = 2e-3) -> None:
        torch.set_num_threads(1)  # arrays this small gain little from more
        self.model, self.case, self.penalty = Autoencoder(weights), case, penalty
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), lr=rate)
        if case.tag is not None:  # projgrad: one line
            self.optimizer = ProjectedOptimizer(self.optimizer, {"decoder": case.tag}, model=self.model)

    def advance(self, batches: np.ndarray) -> None:
        """One step per batch."""
        for batch in torch.from_numpy(batches):
            codes, output = self.model(batch)
            sizes = codes @ self.model.decoder.norm(dim=1) if self.case.weighted else codes.sum(dim=1)
            loss = (output - batch).square().sum(dim=1).mean() + self.penalty * sizes.mean()
            self.optimizer.zero_grad()
            loss.backward()
            if self.case.by_hand:
                self.step_by_hand(self.model.decoder)
            else:
                self.optimizer.step()

    @torch.no_grad()
    def step_by_hand(self, atoms: nn.Parameter) -> None:
        assert atoms.grad is not None
        atoms.grad.sub_((atoms.grad * atoms).sum(dim=1, keepdim=True) * atoms)
        self.optimizer.step()
        atoms.div_(atoms.norm(dim=1, keepdim=True))

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.model.named_parameters()}
