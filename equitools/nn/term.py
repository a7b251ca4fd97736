"""The contract of a term of the loss: what it reads, what it computes, what moves after a step.

    L = Σ terms of the objective + Σ_t weight_t · Σ terms of t

Objectives and equivariance regularizers are one type. A term writes what is its own; whatever it
does not say is as it stands here, and what it needs is read off its class before training starts.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equitools.core.errors import UsageError
from equitools.core.records import Features, Step
from equitools.nn import collapse, ema
from equitools.nn.schedules import half_cosine

# What a term may ask of an objective's heads (`needs` of the one, `heads_kind` of the other).
HEADS = {"distribution": "a head over prototypes", "projector": "a projector and a predictor"}


class Term(nn.Module):
    """A term of the loss: knobs in the constructor, `forward(step)` → {name: scalar}.

    target   reads the target network, `step.target`
    split    reads the EF part of an encoder that splits its output
    maps     reads maps of the block or stage `layer`; layers: which ones, counted from 0
    portion  reads views that a part of the batch has in place of others, `step.portions`
    actions  the operations whose numbers it reads, `view.action`
    needs    the kind of heads (HEADS) that its objective must have, None for any
    """

    target: bool = False
    split: bool = False
    maps: bool = False
    portion: bool = False
    actions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    needs: str | None = None

    @staticmethod
    def check_views(views: dict[str, Any]) -> None:
        """Refuse a recipe's views, resolved, with a UsageError; here all are welcome."""

    def heads(self) -> list[nn.Module]:
        """The trained heads: what is called head, projector or predictor; L_PReg pairs them."""
        named = dict(self.named_children())
        return [named[name] for name in ("head", "projector", "predictor") if name in named]

    def constant_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate is not scheduled."""
        return []

    @torch.no_grad()
    def after(self, step: Step) -> None:
        """Move what moves once a step: `target_x` follows `x`, as the objective says how fast."""
        for name, follower in self.named_children():
            if name.startswith("target_"):
                online = self.get_submodule(name.removeprefix("target_"))
                ema.update(follower, online, step.objective.momentum(step.done))

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: log10 Σp² of the heads and mean |z| of the EF part, if it is read."""
        return collapse.vital_signs(self.heads(), step.online, "V") if self.split else {}


class Objective(Term):
    """A base objective: a term that has heads for others to pair with, and decides for the loop.

    exports     which encoder a checkpoint holds, online or slow (the target network)
    heads_kind  of HEADS, or embedding
    crops       the views that it compares: two global ones, global ones, or all
    apart       the encoder is called once a view, so that batch norm sees one view at a time
    one_way     only the first view's features and the last target features are read
    knobs       of the heads
    """

    exports: Literal["online", "slow"] = "online"
    heads_kind: str = "embedding"
    crops: Literal["two", "global", "all"] = "all"
    apart: bool = False
    one_way: bool = False
    base_momentum: float = 1.0  # nothing moves where nothing follows
    # (width, **knobs) → fresh heads for representations of that width, in the order of `heads`
    new_heads: Callable[..., list[nn.Module]]

    def __init__(self, **knobs: Any) -> None:
        super().__init__()
        self.knobs = knobs

    def check_batch(self, size: int) -> None:
        """Refuse a batch, of all processes, with a UsageError; here every size is welcome."""

    def make_heads(self, dim: int, **changed: Any) -> list[nn.Module]:
        """Fresh heads of the same kind for another width, with some knobs changed."""
        return self.new_heads(dim, **{**self.knobs, **changed})

    def momentum(self, done: float) -> float:
        """The target networks' momentum when `done` of the run is behind us; it rises to 1."""
        return half_cosine(self.base_momentum, 1.0, done)

    @torch.no_grad()
    def diagnostics(self, step: Step) -> dict[str, float]:
        """Signs of collapse: log10 Σp² of the heads and mean |z| of the representation."""
        return collapse.vital_signs(self.heads(), step.online, "I")


# --- Which views meet ------------------------------------------------------------------------


def global_views(step: Step) -> list[int]:
    """The indices of the views that the target network sees, in the order of `step.target`."""
    return [i for i, view in enumerate(step.views) if view.group == "global"]


def two_views(step: Step, name: str) -> tuple[Tensor, Tensor]:
    """`.invariant` of the two global views, b d each; UsageError naming the objective otherwise."""
    views = [step.online[i].invariant for i in global_views(step)]
    if len(views) != 2:
        raise UsageError(f"{name} compares two global views, not {len(views)}")
    return views[0], views[1]


def partners(step: Step) -> list[tuple[int, ...]]:
    """For every view the target views that it is compared with, as positions in `step.target`.

    A view meets all of them but its own. Raises UsageError when there is not one target view for
    every global view, or when no two views can meet.
    """
    owners, count = global_views(step), len(target_features(step))
    if len(owners) != count:
        raise UsageError(f"{count} target views for {len(owners)} global views")
    others = [
        tuple(i for i, owner in enumerate(owners) if owner != view)
        for view in range(len(step.views))
    ]
    if not any(others):
        raise UsageError("no two views to compare; say views.global.count=2")
    return others


def target_features(step: Step) -> list[Features]:
    """The target network's features of each global view; none where no term reads them."""
    return step.target or []


# --- What goes with what ---------------------------------------------------------------------


def goes_with(term: type[Term] | Term, objective: type[Objective] | Objective) -> bool:
    """Has the objective the heads that the term asks for, if it asks? Classes or objects."""
    return term.needs in (None, objective.heads_kind)


def check_pair(term: Term, name: str, dim: int, objective: Objective) -> None:
    """Refuse a term whose objective has no heads of the kind that it pairs with, or no EF part."""
    if not goes_with(term, objective):
        other = type(objective).__name__.lower()
        raise UsageError(
            f"{name} does not go with {other}: it needs an objective with"
            f" {HEADS[term.needs or '']} (equi-pretrain --list shows the pairs)"
        )
    if dim < 1:
        raise UsageError(f"{name} needs an encoder that splits its output; say backbone.split=0.8")
