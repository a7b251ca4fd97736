"""Batch norm over the batches of all processes, on any device (torch's own needs a GPU).

    y = (x - μ) / √(σ² + ε) · γ + β,     μ = Σ_r n_r μ_r / Σ_r n_r,
    σ² = Σ_r n_r (σ_r² + (μ_r - μ)²) / Σ_r n_r

with r over processes that see n_r values of a channel each (Ioffe & Szegedy, 2015; the sum of
variances: Chan, Golub & LeVeque, 1979). So losses and gradients do not depend on how many
processes share a batch, as SimCLR and Barlow Twins have it.
"""

from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equitools.core import distributed

Model = TypeVar("Model", bound=nn.Module)


class SyncBatchNorm(_BatchNorm):
    """Batch norm by the statistics of all processes while training, b c … → b c ….

    One process has nn.BatchNorm, and a process may have no rows. It is no nn.SyncBatchNorm, which
    DistributedDataParallel refuses off the GPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; the running statistics, too, are those of all processes."""
        alone = not self.training or distributed.world_size() == 1
        return super().forward(input) if alone else self._across(input)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def _across(self, x: Tensor) -> Tensor:
        inner = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        number = x.numel() // x.shape[1]
        mean = wide.sum(inner) / max(number, 1)
        variance = (wide - mean.view(shape)).square().sum(inner) / max(number, 1)
        mine = torch.stack([torch.full_like(mean, number), mean, variance])
        counts, means, variances = distributed.gather(mine[None]).unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        self._remember(mean.detach(), variance.detach() * total / (total - 1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        out = (wide - mean.view(shape)) * scale.view(shape)
        return (out if self.bias is None else out + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        seen = int(self.num_batches_tracked)
        share = 1 / seen if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class SyncBatchNormAct(SyncBatchNorm):
    """The same with the dropout and activation that timm has in one layer with batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, drop, activate."""
        layer: Any = self
        return layer.act(layer.drop(super().forward(input)))


def synchronize(model: Model, device: torch.device | str = "cpu") -> Model:
    """The model, whose every batch norm sees the batches of all processes; no name changes.

    device: where it will run; on GPUs the layers are torch's.
    """
    if torch.device(device).type == "cuda":
        return convert_sync_batchnorm(model)
    kinds = {
        nn.BatchNorm1d: SyncBatchNorm,
        nn.BatchNorm2d: SyncBatchNorm,
        BatchNormAct2d: SyncBatchNormAct,
    }
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
    return model
