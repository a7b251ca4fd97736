"""Linear classifiers on vectors, several side by side that differ in their learning rate.

    speed ← μ speed + ∂L/∂W,  W ← W - lr · speed,  ∂L/∂logits = softmax(logits) - y

SGD with momentum μ as torch has it; weights start from N(0, 0.01), biases from 0 (Caron et al.,
2021, "DINO").
"""

import torch
from torch import Tensor

from equitools.evals.classifiers import protocol


class HeadBank:
    """H linear heads on one part, trained together: weight (D, H, C), so that all heads are one
    matrix product, and bias (H, C).

    rates: H learning rates. Gradients are written out (soft-max cross-entropy has p - y),
    so heads never mix and one that diverges harms no other.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        rates: Tensor,
        seed: int,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(width, 1, classes, generator=generator) * 0.01
        # Every rate starts from the same weights: only the rate differs.
        self.weight = first.to(rates.device).repeat(1, len(rates), 1)
        self.bias = torch.zeros(len(rates), classes, device=rates.device)
        self.rates, self.momentum, self.weight_decay = rates, momentum, weight_decay
        self.speed = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def logits(self, features: Tensor) -> Tensor:
        """Features b d → logits b h c."""
        product = features @ self.weight.flatten(1)
        return product.unflatten(1, self.bias.shape) + self.bias

    def step(self, features: Tensor, targets: Tensor, weights: Tensor, scale: float) -> None:
        """One SGD step. targets b c one-hot; weights b h say which head sees which sample;
        scale multiplies the rates (the schedule)."""
        share = weights / weights.sum(0).clamp(min=1)
        error = (self.logits(features).softmax(-1) - targets[:, None]) * share[..., None]
        rates = (self.rates * scale)[:, None]
        # speed ← momentum · speed + gradient in one matrix product, in place.
        self.speed[0].flatten(1).addmm_(features.T, error.flatten(1), beta=self.momentum)
        self.speed[1].mul_(self.momentum).add_(error.sum(0))
        for value, speed in zip((self.weight, self.bias), self.speed, strict=True):
            if self.weight_decay:
                speed.add_(value, alpha=self.weight_decay)
            value.addcmul_(speed, rates, value=-1)

    def accuracy(
        self, features: Tensor, labels: Tensor, first: int = 0, chunk: int = 4096
    ) -> Tensor:
        """Percent right of each head from `first` on, in doubles: 1 h (top-1), or 2 h (and top-5)
        with five classes or more. A head whose weights are not finite has 0."""
        count = 5 if self.bias.shape[1] >= 5 else 1
        right = torch.zeros((), dtype=torch.float64)
        for x, y in zip(features.split(chunk), labels.split(chunk), strict=True):
            ranked = self.logits(x)[:, first:].nan_to_num(-1e30).topk(count).indices
            right = right + protocol.right(ranked, y)
        sane = self.weight.isfinite().all(2).all(0).cpu()[first:]
        return 100 * right * sane / len(labels)

    def finite(self, row: int) -> bool:
        """Has this head not diverged?"""
        return bool(self.weight[:, row].isfinite().all())

    def tensors(self, row: int, mean: Tensor, sd: Tensor) -> dict[str, Tensor]:
        """weight c d and bias c of a head that reads features before they are standardized."""
        weight = (self.weight[:, row] / sd.reshape(-1, 1)).T
        bias = self.bias[row] - (weight * mean).sum(1)
        return {"weight": weight.contiguous(), "bias": bias.clone()}
