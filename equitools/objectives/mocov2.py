"""MoCo v2: tell the target network's key of the other view from a queue of earlier keys.

    L = mean of -log ( exp(q·k⁺ / τ) / (exp(q·k⁺ / τ) + Σ_{k in queue} exp(q·k / τ)) )

with q = projector(f) of the first view and k⁺ = target projector(target f) of the second, unit
vectors; one direction only (He et al., 2020, "Momentum Contrast", Algorithm 1; Chen et al., 2020,
"Improved Baselines with Momentum Contrastive Learning", for head, τ = 0.2 and augmentation).

Batch norm. The paper normalizes 32 images a GPU and shuffles the keys among GPUs, since a query and
its key that share such a small group can be told by its statistics. Here statistics are those of
the batch of all processes, for queries and keys: no small group has a signature, and a run does
not depend on how many processes share the batch. What is left: a query and its key still share
their batch, and the queue's keys have other batches' statistics, which differ by about 1/√B. A ViT
and the head have no batch norm at all.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.core import distributed
from equitools.core.errors import UsageError
from equitools.core.records import Step
from equitools.nn import ema
from equitools.nn.heads import mlp
from equitools.nn.losses.info_nce import cosines, unit
from equitools.nn.term import Objective, target_features


class MoCoV2(Objective):
    """MoCo v2: InfoNCE against a queue of target keys (He et al., 2020; Chen et al., 2020).

    Reads `.invariant` of the first view, b d, and of the target network's second view. hidden_dim:
    of the projector, without batch norm; None is the width of the representation. queue_size: a
    multiple of the batch of all processes. momentum is constant. MoCo v1 is temperature 0.07, a
    linear head and another augmentation.
    """

    target = True
    apart = True  # a query and a key of one view each
    one_way = True  # the first view is asked, the last one answers
    crops = "two"
    queue: Tensor
    place: Tensor

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
    ) -> None:
        super().__init__(hidden_dim=hidden_dim, out_dim=out_dim)
        (self.projector,) = self.make_heads(dim)
        self.target_projector = ema.copy(self.projector)
        self.register_buffer("queue", unit(torch.randn(queue_size, out_dim)))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.seen: list[Tensor] = []
        self.temperature, self.base_momentum = temperature, momentum

    def check_batch(self, size: int) -> None:
        """Refuse a batch (of all processes) that the queue is no multiple of."""
        length = len(self.queue)
        if length % size:
            whole = max(length // size, 1) * size
            raise UsageError(
                f"mocov2's queue of {length} keys is no multiple of the batch of {size};"
                f" say objective.queue_size={whole}, or another batch_size"
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The mean cross-entropy in nats; ln(1 + queue_size) where all keys are the same."""
        keys = self.keys(step)
        queries = unit(self.projector(step.online[0].invariant))
        positives = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positives, cosines(queries, self.queue)], dim=1)
        if self.training:
            self.seen.append(distributed.gather(keys))
        first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return {"mocov2": F.cross_entropy(logits / self.temperature, first)}

    @torch.no_grad()
    def keys(self, step: Step) -> Tensor:
        """The target projector's unit vectors of the second view, b out_dim."""
        return unit(self.target_projector(target_features(step)[-1].invariant))

    def momentum(self, done: float) -> float:
        """The target networks' momentum, the same all along."""
        return self.base_momentum

    @torch.no_grad()
    def after(self, step: Step) -> None:
        """The step's keys, of all processes, replace the oldest; the target head moves."""
        if self.seen:
            keys = torch.cat(self.seen)
            places = self.place + torch.arange(len(keys), device=keys.device)
            self.queue[places % len(self.queue)] = keys
            self.place.copy_((self.place + len(keys)) % len(self.queue))
        self.seen = []
        super().after(step)

    @staticmethod
    def new_heads(dim: int, *, hidden_dim: int | None, out_dim: int) -> list[nn.Module]:
        """A projector."""
        return [mlp(dim, hidden_dim or dim, out_dim, bias=True, out_bias=True, norm=False)]
