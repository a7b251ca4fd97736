"""Three-layer classifiers on vectors, several side by side that differ in their learning rate.

    logits = W₃ relu(W₂ relu(W₁ x + b₁) + b₂) + b₃,  hidden width 1024

the "deep end" of Garrido, Najman & LeCun (2023, "SIE"), as SER's non-linear evaluation and its
prediction of rotations and flips have it. Adam with decoupled weight decay (Loshchilov & Hutter,
2019, "AdamW"), which without decay is Adam.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.evals.classifiers.protocol import right
from equitools.nn import heads


class Classifiers:
    """H of them on vectors of `width`; the i-th has the i-th of `rates` (h).

    All start from the same weights, those of torch's linear layers, drawn from `seed`.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        rates: Tensor,
        seed: int,
        *,
        hidden: int = 1024,
        weight_decay: float = 0.0,
    ) -> None:
        self.classes, self.rates = classes, rates.tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = heads.mlp(width, hidden, hidden, classes, norm=False, bias=True, out_bias=True)
        self.nets = [
            heads.mlp(width, hidden, hidden, classes, norm=False, bias=True, out_bias=True)
            for _ in self.rates
        ]
        for net in self.nets:
            net.load_state_dict(first.state_dict())
            net.to(rates.device)
        groups = [
            {"params": list(net.parameters()), "lr": rate}
            for net, rate in zip(self.nets, self.rates, strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)

    def step(self, features: Tensor, targets: Tensor, weights: Tensor, scale: float) -> None:
        """One step on vectors b d. targets b c one-hot; weights b h say which classifier sees which
        sample; scale multiplies the rates (the schedule)."""
        self.optimizer.zero_grad()
        for net, weight in zip(self.nets, weights.T, strict=True):
            loss = F.cross_entropy(net(features), targets, reduction="none")
            ((loss * weight).sum() / weight.sum().clamp(min=1)).backward()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        self.optimizer.step()

    @torch.no_grad()
    def accuracy(
        self, features: Tensor, labels: Tensor, first: int = 0, chunk: int = 4096
    ) -> Tensor:
        """Percent right of each classifier from `first` on: 1 h (top-1), or 2 h (and top-5)."""
        count = 5 if self.classes >= 5 else 1
        hits = torch.zeros((), dtype=torch.float64)
        for x, y in zip(features.split(chunk), labels.split(chunk), strict=True):
            logits = torch.stack([net(x) for net in self.nets[first:]], dim=1)
            hits = hits + right(logits.nan_to_num(-1e30).topk(count).indices, y)
        sane = torch.tensor([self.finite(row) for row in range(first, len(self.nets))])
        return 100 * hits * sane / len(labels)

    def finite(self, row: int) -> bool:
        """Has this classifier not diverged?"""
        return all(bool(value.isfinite().all()) for value in self.nets[row].parameters())

    def tensors(self, row: int, mean: Tensor, sd: Tensor) -> dict[str, Tensor]:
        """weight1 … bias3 of a classifier that reads features before they are standardized."""
        tensors: dict[str, Tensor] = {}
        linear = [layer for layer in self.nets[row] if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(linear, 1):
            tensors[f"weight{number}"] = layer.weight.detach().clone()
            assert layer.bias is not None
            tensors[f"bias{number}"] = layer.bias.detach().clone()
        tensors["weight1"] = tensors["weight1"] / sd
        tensors["bias1"] = tensors["bias1"] - (tensors["weight1"] * mean).sum(1)
        return tensors


def named(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A file's tensors `<head>/<tensor>` by head, in the order of their names."""
    by_head: dict[str, dict[str, Tensor]] = {}
    for path in sorted(tensors):
        name, _, key = path.rpartition("/")
        by_head.setdefault(name, {})[key] = tensors[path]
    return {name: head for name, head in by_head.items() if "weight" in head or "weight1" in head}


def shape(head: Mapping[str, Tensor]) -> tuple[int, int]:
    """(classes, width of the features) of a saved head."""
    weights = [head[name] for name in sorted(head) if name.startswith("weight")]
    return len(weights[-1]), weights[0].shape[1]


def logits(head: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Logits b c of a saved head on vectors b d: weight and bias, or weight1, bias1, weight2, …
    with a ReLU between them."""
    if "weight" in head:
        return F.linear(features, head["weight"], head["bias"])
    layers = sum(name.startswith("weight") for name in head)
    for number in range(1, layers + 1):
        features = F.linear(features, head[f"weight{number}"], head[f"bias{number}"])
        features = features.relu() if number < layers else features
    return features
