"""Collapse is measured, put into words, and follows the law of decay where nothing holds it."""

import math

import pytest
import torch
from torch import nn
from toy_steps import small, toy_step

from equitools.equivariance import clever, ddcl
from equitools.nn import collapse, optim, schedules
from equitools.nn.heads import simsiam_predictor, simsiam_projector
from equitools.nn.losses.parameter_balance import balance
from equitools.objectives import simsiam
from equitools.training import optimization, watch
from equitools.training.learner import Learner
from equitools.training.length import Length


def decay_law(rates, *, weight_decay=1e-4, momentum=0.9, start=1.0):
    """Factors on weights that only decay: v ← m v + λ f, f ← f - η v, for each rate η."""
    factor, velocity, found = start, 0.0, []
    for rate in rates:
        velocity = momentum * velocity + weight_decay * factor
        factor -= rate * velocity
        found.append(factor)
    return found


def test_the_papers_table_1_is_the_law_of_decay():
    """Σp² of projector (6144.3) and predictor (1366.7) without gradient, ImageNet, 30+200 epochs.

    The predictor's rate is constant, the projector's a cosine; the base rate is .05·B/256.
    """
    steps = 1_281_167 // 256
    prelude = [1e-9 + 0.05 * epoch / 30 for epoch in range(30) for _ in range(steps)]
    cosine = [
        schedules.half_cosine(0.05, 0, epoch / 200) for epoch in range(200) for _ in range(steps)
    ]
    start = decay_law(prelude)[-1]
    projector = decay_law(cosine, start=start)
    predictor = decay_law([0.05] * len(cosine), start=start)
    for epoch, published in {10: -1.46, 50: -9.63, 100: -17.1, 200: -21.1}.items():
        last = epoch * steps - 1
        power = math.log10(6144.3 * projector[last] ** 2 + 1366.7 * predictor[last] ** 2)
        assert power == pytest.approx(published, abs=0.12)


def train(terms, steps, rate, decay, lever=None):
    """SGD as DDCL uses it on heads whose only gradient is L_PReg; returns log10 Σp² over time."""
    heads = [p for head in terms for p in head.parameters()]
    optimizer = torch.optim.SGD(heads, lr=rate, momentum=0.9, weight_decay=decay)
    found, rates = [collapse.log_power(terms)], []
    for step in range(steps):
        rates.append(schedules.half_cosine(rate, 0, step / steps))
        optimizer.param_groups[0]["lr"] = rates[-1]
        optimizer.zero_grad()
        loss = 0 * sum(p.sum() for p in heads)
        if lever is not None:
            loss = loss + lever()
        loss.backward()
        optimizer.step()
        found.append(collapse.log_power(terms))
    return found, rates


def test_heads_without_gradient_decay_by_the_law_over_more_than_eight_decades():
    torch.manual_seed(0)
    heads = [simsiam_projector(6, 16, freeze_bias=False), simsiam_predictor(16, 8)]
    found, rates = train(heads, steps=800, rate=0.5, decay=5e-3)
    factors = [1.0, *decay_law(rates, weight_decay=5e-3)]
    predicted = [found[0] + 2 * math.log10(factor) for factor in factors]
    assert found[-1] < found[0] - 8
    assert found == pytest.approx(predicted, abs=1e-3)


def test_heads_of_a_learner_decay_by_the_law_through_prelude_and_schedule():
    """The recipe's own optimizer and rates, momentum afresh after the prelude, a constant rate for
    the predictor: with an EF gradient of zero h_V is the law's, whatever the IR part learns."""
    torch.manual_seed(0)
    objective = simsiam(16, dim=24, hidden=8, freeze_bias=False)
    term = ddcl(4, objective, regularization=0.0)
    model = Learner(nn.Identity(), objective, {"ddcl": term}, {"ddcl": 0.0})
    knobs = {"name": "sgd", "lr": 2.0, "min_lr": 0.0, "weight_decay": 5e-3, "decay_bias": True}
    settings = {"batch_size": 64, "optimizer": optim.optimizer_settings(**knobs)}
    length = Length(samples=64 * 50, batch_size=64, prelude=100, main=700)
    start = [math.log10(power(head)) for head in term.heads()]
    rates: list[list[float]] = [[], []]  # of the projector, of the predictor
    for step in range(length.steps):
        if step in (0, length.prelude):
            optimizer = optimization.make_optimizer(settings, model)
        optimization.set_rates(optimizer, settings, length, 0.0, step)
        for found, constant in zip(rates, (False, True), strict=True):
            found += [g["lr"] for g in optimizer.param_groups if g["constant"] == constant][:1]
        optimizer.zero_grad()
        record = toy_step(objective, local=0, with_target=False, seed=step)
        losses = objective(record) | {name: 0.0 * loss for name, loss in term(record).items()}
        torch.stack([value.float() for value in losses.values()]).sum().backward()
        optimizer.step()
    for head, first, found in zip(term.heads(), start, rates, strict=True):
        factor = decay_law(found[: length.prelude], weight_decay=5e-3)[-1]
        factor = decay_law(found[length.prelude :], weight_decay=5e-3, start=factor)[-1]
        assert math.log10(power(head)) == pytest.approx(first + 2 * math.log10(factor), abs=1e-3)
    assert term.diagnostics(record)["h_V"] < math.log10(sum(10**first for first in start)) - 8


def power(head):
    """Σp² in float64."""
    return sum(float(p.detach().double().square().sum()) for p in head.parameters())


def test_l_preg_prevents_the_decay():
    """The EF heads are held at the power of IR heads that the loss keeps alive."""
    torch.manual_seed(0)
    objective = simsiam(16, dim=24, hidden=8, freeze_bias=False)
    term = ddcl(4, objective, regularization=0.02)

    def lever():
        return balance(objective.heads(), term.heads()) * term.regularization

    held, _ = train(term.heads(), steps=600, rate=0.5, decay=5e-3, lever=lever)
    free, _ = train(ddcl(4, objective).heads(), steps=600, rate=0.5, decay=5e-3)
    assert free[-1] < -4
    assert held[-1] == pytest.approx(collapse.log_power(objective.heads()), abs=0.2)


def test_effective_rank_counts_equal_directions():
    assert collapse.effective_rank(torch.eye(7)) == pytest.approx(7)
    assert collapse.effective_rank(torch.ones(9, 5)) == pytest.approx(1)
    assert collapse.effective_rank(torch.zeros(9, 5)) == 1.0


def test_effective_rank_is_the_exponential_of_an_entropy():
    values = torch.tensor([4.0, 2.0, 1.0])
    p = values / values.sum()
    expected = math.exp(-(p * p.log()).sum().item())
    assert collapse.effective_rank(torch.diag(values)) == pytest.approx(expected)


def test_spread_is_one_for_isotropic_features_and_zero_for_constant_ones():
    torch.manual_seed(0)
    mean, smallest = collapse.spread(torch.randn(4000, 32))
    assert mean == pytest.approx(1, abs=0.02)
    assert smallest == pytest.approx(1, abs=0.1)
    assert collapse.spread(torch.ones(10, 4)) == (0.0, 0.0)


def test_both_parts_are_measured():
    found = collapse.measure(collapse.watched_features(toy_step()))
    assert found.keys() == {f"{n}_{p}" for n in ("rank", "spread", "spread_min") for p in "IV"}
    whole = collapse.measure(collapse.watched_features(toy_step(split=None, with_target=False)))
    assert whole.keys() == {"rank_I", "spread_I", "spread_min_I"}


def test_a_uniform_collapse_is_told_in_words():
    readings = {
        "dino/uniform_entropy": math.log(65536),
        "dino/teacher_entropy": math.log(65536) - 1e-6,
        "dino/mean_entropy": math.log(65536),
    }
    assert watch.describe(readings, {"dino": 11.09035}) == [
        "uniform collapse: loss 11.0904 = ln 65536"
    ]
    assert watch.describe(readings, {"dino": 7.6873}) == [
        "uniform collapse: teacher entropy 11.0904, ln 65536 = 11.0904"
    ]


def test_a_collapse_onto_one_prototype_is_told_in_words():
    readings = {"uniform_entropy": math.log(48), "teacher_entropy": 1e-5, "mean_entropy": 1e-5}
    (words,) = watch.describe(readings, {})
    assert "one of 48 prototypes" in words


def test_decayed_heads_and_dead_parts_are_told_in_words():
    readings = {"ddcl/h_V": -9.0, "ddcl/z_V": 1e-12, "simsiam/h_I": 2.0, "spread_I": 1e-5}
    words = watch.describe(readings, {})
    assert words == [
        "the EF head has decayed: Σp² = 1e-9.0",
        "the equivariant part has vanished: mean |z| = 1e-12",
        "the invariant part is constant: channel spread 1e-05",
    ]


@pytest.mark.parametrize("name", ["dino", "simsiam"])
def test_a_fresh_run_raises_no_alarm(name):
    torch.manual_seed(0)
    objective = small(name)
    term = clever(4, objective, out_dim=48) if name == "dino" else ddcl(4, objective)
    step = toy_step(objective, local=2 if name == "dino" else 0, batch=32)
    losses = {key: float(value.detach()) for key, value in objective(step).items()}
    readings = collapse.measure(collapse.watched_features(step))
    for owner, member in ((name, objective), ("term", term)):
        found = member.diagnostics(step)
        assert all(math.isfinite(value) for value in found.values())
        readings |= {f"{owner}/{key}": value for key, value in found.items()}
    assert watch.describe(readings, losses) == []


def test_log_power_is_the_sum_of_squares_over_all_heads():
    heads = [nn.Linear(2, 2), nn.Linear(2, 2)]
    with torch.no_grad():
        for parameter in [p for head in heads for p in head.parameters()]:
            parameter.fill_(2.0)
    assert collapse.log_power(heads) == pytest.approx(math.log10(12 * 4))
