"""What every objective and every equivariance term keeps to, whatever it computes.

The tests run over the namespaces of the two packages: a new file is tested once it is listed.
"""

import itertools
import math

import forked
import pytest
import torch
from toy_steps import BATCH, DIM, SPLIT, reorder, small, small_term, toy_step

from equitools import equivariance, objectives
from equitools.core import distributed
from equitools.core.errors import UsageError
from equitools.manifest import schema
from equitools.nn import sync_batchnorm
from equitools.nn.term import goes_with

OBJECTIVES = [name for name, _ in schema.menu(objectives)]
TERMS = [name for name, _ in schema.menu(equivariance)]
PAIRS = [
    (term, objective)
    for term, objective in itertools.product(TERMS, OBJECTIVES)
    if goes_with(getattr(equivariance, term), getattr(objectives, objective))
]
REFUSED = [pair for pair in itertools.product(TERMS, OBJECTIVES) if pair not in PAIRS]


def assembled(term, objective):
    """Every trained module of a pair (or of an objective alone), and a step for it."""
    base = small(objective)
    modules = [base] if term is None else [base, small_term(term, base)]
    return modules, toy_step(base, local=2 if base.crops == "all" else 0, with_target=base.target)


def total(modules, step):
    """The loss that a run would add up."""
    return sum(value for module in modules for value in module(step).values())


EVERY = [(None, name) for name in OBJECTIVES] + PAIRS


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_say_what_they_need_and_export(name):
    chosen = getattr(objectives, name)
    assert chosen.exports in ("slow", "online")
    assert chosen.heads_kind in ("distribution", "projector", "embedding")
    assert chosen.crops in ("two", "global", "all")
    assert isinstance(chosen.target, bool)
    assert isinstance(chosen.split, bool)
    assert chosen.target or chosen.exports == "online"
    assert 0 < small(name).momentum(0.5) <= 1
    assert (small(name).momentum(0.5) == 1) == (not chosen.target)


@pytest.mark.parametrize("name", TERMS)
def test_terms_say_what_they_need(name):
    chosen = getattr(equivariance, name)
    for attribute, kind in (("target", bool), ("split", bool), ("actions", tuple)):
        assert isinstance(getattr(chosen, attribute), kind)
    assert isinstance(chosen.layers, tuple)


@pytest.mark.parametrize("package", [objectives, equivariance])
def test_every_name_comes_with_a_line_and_knobs_with_defaults(package):
    for name, line in schema.menu(package):
        assert line.endswith(".")
        filled = schema.knobs(getattr(package, name), {}, name)
        assert schema.knobs(getattr(package, name), filled, name) == filled


def test_every_term_goes_with_some_objective():
    assert {term for term, _ in PAIRS} == set(TERMS)


@pytest.mark.parametrize(("term", "objective"), REFUSED)
def test_other_pairs_are_refused_with_a_reason(term, objective):
    with pytest.raises(UsageError, match="does not go with"):
        small_term(term, small(objective))


@pytest.mark.parametrize(("term", "objective"), EVERY)
def test_the_loss_is_a_finite_scalar_with_named_parts(term, objective):
    modules, step = assembled(term, objective)
    for module in modules:
        found = module(step)
        assert found
        for name, value in found.items():
            assert name.split("/")[0] in (term, objective)
            assert value.shape == ()
            assert torch.isfinite(value)


@pytest.mark.parametrize(("term", "objective"), EVERY)
def test_the_order_of_the_batch_does_not_matter(term, objective):
    modules, step = assembled(term, objective)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = total(modules, step), total(modules, reorder(step, order))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("term", "objective"), EVERY)
def test_slow_features_and_slow_copies_get_no_gradient(term, objective):
    modules, step = assembled(term, objective)
    for record in step.target or []:
        record.pooled.requires_grad_()
    total(modules, step).backward()
    assert all(record.pooled.grad is None for record in step.target or [])
    for module in modules:
        frozen = [p for p in module.parameters() if not p.requires_grad]
        assert all(p.grad is None for p in frozen)


@pytest.mark.parametrize(("term", "objective"), EVERY)
def test_every_trained_tensor_and_every_view_get_a_gradient(term, objective):
    modules, step = assembled(term, objective)
    total(modules, step).backward()
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
    for module in modules:
        trained = [p for head in module.heads() for p in head.parameters() if p.requires_grad]
        assert sum(p.grad.abs().sum() for p in trained) > 0
    if getattr(modules[-1], "maps", False):
        for record in step.portions["grid"].online:
            assert all(cells.grad.abs().sum() > 0 for cells in record.maps.values())
        return
    columns = slice(SPLIT, DIM) if modules[-1].split else slice(0, SPLIT)
    asked = step.online[:1] if getattr(modules[-1], "one_way", False) else step.online
    for record in asked:
        assert record.pooled.grad[:, columns].abs().sum() > 0


@pytest.mark.parametrize(("term", "objective"), EVERY)
def test_a_term_resumes_from_its_state(term, objective):
    modules, step = assembled(term, objective)
    again, _ = assembled(term, objective)
    total(modules, step)
    for module in modules:
        getattr(module, "after", lambda step: None)(step)
    for module, copy in zip(modules, again, strict=True):
        copy.load_state_dict(module.state_dict())
    again_step = reorder(step, torch.arange(BATCH))
    step.objective, again_step.objective = modules[0], again[0]
    torch.testing.assert_close(total(modules, step), total(again, again_step), rtol=0, atol=0)


@pytest.mark.parametrize(("term", "objective"), EVERY)
def test_diagnostics_are_finite_numbers_and_change_nothing(term, objective):
    modules, step = assembled(term, objective)
    for module in modules:
        before = {key: value.clone() for key, value in module.state_dict().items()}
        found = module.diagnostics(step)
        assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
        after = module.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())


def of_rank(step, rank, world):
    """The share of a step's batch that one of several processes sees."""
    each = BATCH // world
    half = reorder(step, torch.arange(rank * each, (rank + 1) * each))
    for record in half.online:
        record.pooled.requires_grad_()
    return half


def gradients(modules):
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.cat([p.grad.flatten() for p in trained])


def buffers(modules):
    """What `after` has moved: centers, queues and target heads."""
    moved = ("center", "queue", "place")
    found = [b.flatten() for m in modules for n, b in m.named_buffers() if n.startswith(moved)]
    frozen = [p.flatten() for m in modules for p in m.parameters() if not p.requires_grad]
    return torch.cat([*found, *frozen, torch.zeros(1)])


def work(rank, folder):
    distributed.start("cpu")
    found = {}
    for term, objective in EVERY:
        torch.manual_seed(0)
        modules, step = assembled(term, objective)
        for module in modules:
            sync_batchnorm.synchronize(module)
        half = of_rank(step, rank, 2)
        loss = total(modules, half)
        loss.backward()
        for module in modules:
            getattr(module, "after", lambda step: None)(half)
        found[term, objective] = (
            distributed.mean_across(loss.detach()),
            distributed.mean_across(gradients(modules)),
            buffers(modules).detach(),
        )
    distributed.stop()
    torch.save(found, folder / f"{rank}.pt")


def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    """Loss, gradients, centers, queues and target heads are those of one process and the batch."""
    forked.ranks(work, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for term, objective in EVERY:
        (loss, slope, moved), other = (ranks[r][term, objective] for r in (0, 1))
        assert (slope == other[1]).all()
        assert (moved == other[2]).all()
        assert slope.abs().sum() > 0
        torch.manual_seed(0)
        modules, step = assembled(term, objective)
        alone = total(modules, step)
        torch.testing.assert_close(loss, alone.detach())
        alone.backward()
        for module in modules:
            getattr(module, "after", lambda step: None)(step)
        whole = gradients(modules)
        assert (slope - whole).norm() < 1e-4 * whole.norm()
        torch.testing.assert_close(moved, buffers(modules).detach())
