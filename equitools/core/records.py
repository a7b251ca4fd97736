"""The three nouns that the rest of the code speaks: View, Features, Step (and a part of a step).

Tensor shapes use b batch, d width, n tokens, h w map, k parameters of an operation, v views.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class View:
    """One augmented picture per sample, with what was done to it.

    image   b 3 h w, normalised floats
    action  {operation: b k}, numbers in the operation's own units; the identity if nothing was done
    matrix  b 3 3, the geometric part, source → view, in [-1, 1] coordinates (x right, y down)
    mask    b n booleans, patches hidden from the encoder, or None
    rows    b, the samples of the batch that this view shows, or None for all of them
    group   the recipe's name of the view group ("global", "local")
    replaces  the group whose views this one stands in for where `rows` says; None outside portions

    In a portion, whose views have a grid of their own, `matrix` is float64 and on the CPU, so that
    it can be recognized as a flip or a turn.
    """

    image: Tensor
    action: dict[str, Tensor]
    matrix: Tensor
    mask: Tensor | None = None
    rows: Tensor | None = None
    group: str = "global"
    replaces: str | None = None


@dataclass
class Features:
    """What an encoder says about one view.

    pooled  b d, what downstream tasks get; `split` is the width of its invariant part, or None
    maps    {block: b d h w}, cls {block: b d}, attention b heads n n, and keys b d h w (of the last
            block's patches, or a CNN's last map): only when asked for
    """

    pooled: Tensor
    split: int | None = None
    maps: dict[int, Tensor] = field(default_factory=dict)
    cls: dict[int, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None
    keys: Tensor | None = None
    rows: Tensor | None = None

    @property
    def invariant(self) -> Tensor:
        """The invariant representation, b split; all of `pooled` where there is no split."""
        return self.pooled if self.split is None else self.pooled[..., : self.split]

    @property
    def equivariant(self) -> Tensor:
        """The equivariant factors, b (d - split); empty when the encoder does not split."""
        return self.pooled[..., self.pooled.shape[-1] if self.split is None else self.split :]


@dataclass
class Portion:
    """The views of a group that shows a part of the batch, and what both encoders say of them.

    Every record's `rows` are the samples of this process's batch that the views show, the same for
    all. maps are those of the layers that terms ask for, on each view's own grid. target is None
    where no term reads a target network, and where that does not see these views, as it sees no
    local ones. There may be no rows here while other processes have some.
    """

    views: list[View]
    online: list[Features]
    target: list[Features] | None


@dataclass
class Step:
    """Everything a term may read: the views, what both encoders say, and how far the run is.

    views, online and target are of the whole batch: where a portion of it has views of its own,
    the features of both are put together in the order of the batch. portions holds those views by
    their group's name. done is the share of the run that is behind us, in [0, 1]; epoch counts
    passes over the data.
    """

    views: list[View]
    online: list[Features]
    target: list[Features] | None
    objective: Any
    done: float
    epoch: float
    portions: dict[str, Portion] = field(default_factory=dict)
