"""What contrastive objectives share: unit rows, InfoNCE, and the similarities of two views.

    InfoNCE   -log ( exp(q·k⁺ / τ) / Σ_k exp(q·k / τ) )          (van den Oord et al., 2018)

Keys and negatives are those of all processes, so that a loss does not depend on their number.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.core import distributed


def unit(x: Tensor) -> Tensor:
    """Rows of length one, b d → b d; in float32."""
    return F.normalize(x.float(), dim=-1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Every unit row with every unit row, n d and m d → n m; in float32 under autocast, too."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy of each query with its own key among the keys of all processes.

    queries: n d, unit rows of this process. keys: N d, unit rows that `parallel.gather` has put
    together, in the order of the queries.
    """
    logits = cosines(queries, keys) / temperature
    return F.cross_entropy(logits, own_rows(len(queries), keys.device))


def similarities(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of each embedding with its sample's other view, and with all other samples' views.

    first, second: n d, two views of the samples of this process. Returns positives 2n, and
    negatives 2n 2N over the N samples of all processes with -inf where the sample meets itself.
    """
    first, second = unit(first), unit(second)
    everything = torch.cat([distributed.gather(first), distributed.gather(second)])
    own = own_rows(len(first), first.device).repeat(2)
    columns = torch.arange(len(everything), device=first.device) % (len(everything) // 2)
    logits = cosines(torch.cat([first, second]), everything)
    positives = (first * second).sum(-1).repeat(2)
    return positives, logits.masked_fill(own[:, None] == columns, -torch.inf)


def own_rows(count: int, device: torch.device) -> Tensor:
    """The places of this process's `count` rows in what `parallel.gather` makes of them."""
    return distributed.first_row(count) + torch.arange(count, device=device)
