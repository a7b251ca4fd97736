"""Multinomial logistic regression on fixed vectors, solved to its one optimum.

    minimize over Θ   Σ_i -log softmax(Θᵀ [x_i, 1])_{y_i} + w |Θ|²

The loss is a sum, and the bias is penalized as the weights are (Kornblith et al., 2019; Lee et al.,
2021, "AugSelf"). scikit-learn's C is 1 / (2 w); its own intercept is not penalized.
By L-BFGS with strong Wolfe steps (Nocedal & Wright, 2006) in coordinates in which the optimum is
easy to find: along the singular vectors of the data, with σ their singular values, each in units of

    1 / √(a σ² + 2 w),  a = mean of p (1 - p)

which is about the inverse square root of the Hessian. That changes the way, not the optimum, which
lies in the span of the data.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from equitools.core.errors import NumericalError

PENALTIES = tuple(float(w) for w in torch.logspace(-6, 5, 45, dtype=torch.float64))


def path(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    *,
    iterations: int = 5000,
    tolerance: float = 1e-6,
) -> Iterator[tuple[float, Tensor]]:
    """(w, Θ) for every penalty, the strongest first; each starts where the last one ended.

    features n d, labels n from 0 to classes - 1; Θ is (d + 1) classes, the bias last, fp64.
    tolerance: of the largest gradient, as a share of what it is at Θ = 0. NumericalError for
    features that are not finite.
    """
    if not features.isfinite().all():
        raise NumericalError("features are not finite; the encoder has diverged")
    data = _with_one(features)
    sigma, directions = _axes(data)
    data = data @ directions
    targets = one_hot(labels.long().to(data.device), classes).double()
    solution = data.new_zeros(len(sigma), classes)
    for penalty in sorted(penalties, reverse=True):
        likely = (data @ solution).softmax(1)
        unit = ((likely * (1 - likely)).mean() * sigma**2 + 2 * penalty).rsqrt()[:, None]
        start, limit = solution / unit, max(iterations, 1)
        scaled = _minimize(data * unit.T, targets, penalty * unit**2, start, limit, tolerance)
        solution = scaled * unit
        if not solution.isfinite().all():
            raise NumericalError(f"logistic regression with penalty {penalty:g} has diverged")
        yield penalty, directions @ solution


def _axes(data: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values r and directions d r of the data n d, as many as span its rows."""
    if len(data) > data.shape[1]:
        values, directions = torch.linalg.eigh(data.T @ data)
        return values.clamp(min=0).sqrt(), directions
    _, sigma, directions = torch.linalg.svd(data, full_matrices=False)
    return sigma, directions.T


def _minimize(
    data: Tensor, targets: Tensor, weights: Tensor, start: Tensor, limit: int, tolerance: float
) -> Tensor:
    """The r c variables of least cross-entropy plus `weights` (r 1) times their squares."""
    variable = start.clone().requires_grad_(True)
    even = float((data.T @ (1 / targets.shape[1] - targets)).abs().max())
    optimizer = torch.optim.LBFGS(
        [variable],
        max_iter=limit,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=tolerance * even,
        tolerance_change=0,
    )

    @torch.no_grad()
    def closure() -> Tensor:
        logarithms = (data @ variable).log_softmax(1)
        variable.grad = data.T @ (logarithms.exp() - targets) + 2 * weights * variable
        return (weights * variable**2).sum() - (logarithms * targets).sum()

    optimizer.step(closure)
    return variable.detach()


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], 1)


def logits(theta: Tensor, features: Tensor) -> Tensor:
    """n classes, fp64."""
    return features.double() @ theta[:-1] + theta[-1]


def choose(
    features: Tensor,
    labels: Tensor,
    held: Tensor,
    classes: int,
    penalties: Sequence[float],
    *,
    iterations: int,
) -> tuple[float, float]:
    """The penalty whose solution on the rows not `held` (n booleans) is most often right on those
    that are, the strongest of equals; and how often, in percent."""
    chosen, best = 0.0, -1.0
    answers, unseen = labels[held].to(features.device), features[held]
    known = path(features[~held], labels[~held], classes, penalties, iterations=iterations)
    for penalty, theta in known:
        right = 100 * float((logits(theta, unseen).argmax(1) == answers).double().mean())
        if right > best:
            chosen, best = penalty, right
    return chosen, best
