"""The learner's loss is the weighted sum that its docstring says, over one call for each size."""

import pytest
import torch

from equitools.core.errors import UsageError
from equitools.core.records import View
from equitools.nn import ema
from equitools.training import learner
from equitools.training import recipe as training_recipe

TINY = {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8}


def recipe(**changes):
    base = {
        "backbone": {"name": "resnet_mini", "split": 0.8},
        "objective": {"name": "dino", **TINY},
        "equivariance": {"clever": {"weight": 0.5, "out_dim": 32}},
        "views": {"global": {"size": 32}, "local": {"size": 16, "count": 2}},
    }
    return training_recipe.resolve(base | changes)


def views(samples=3):
    torch.manual_seed(1)
    sizes = [("global", 32)] * 2 + [("local", 16)] * 2
    return [
        View(torch.randn(samples, 3, size, size), {}, torch.eye(3), group=group)
        for group, size in sizes
    ]


def test_the_loss_is_the_weighted_sum_of_its_parts():
    torch.manual_seed(0)
    model = learner.build(recipe())
    target = learner.encode(ema.copy(model.encoder), views()[:2])
    loss, parts, _ = model(views(), target, 0.0, 0.0)
    expected = parts["dino"] + 0.5 * (parts["clever/orth"] + parts["clever/preg"])
    torch.testing.assert_close(loss, expected)


def test_one_call_a_size_gives_what_single_calls_give():
    torch.manual_seed(0)
    encoder = learner.build(recipe()).encoder.eval()
    together = learner.encode(encoder, views())
    for view, features in zip(views(), together, strict=True):
        torch.testing.assert_close(features.pooled, encoder(view.image).pooled)
    assert [features.split for features in together] == [204] * 4


def test_every_default_is_written_back_and_resolving_again_changes_nothing():
    full = recipe()
    assert full["objective"]["student_temp"] == 0.1
    assert full["optimizer"]["lr"] == 5e-4
    assert full["schedule"]["warmup_epochs"] == 10
    assert training_recipe.resolve(full) == full


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": {"name": "dinno"}}, "did you mean 'dino'"),
        ({"equivariance": {"clever": {"lamda": 1}}}, "takes no 'lamda'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"backbone": {"name": "resnet_minni"}}, "resnet_mini"),
        ({"backbone": {}}, "names no backbone"),
    ],
)
def test_what_no_signature_knows_is_refused(changes, says):
    with pytest.raises(UsageError, match=says):
        recipe(**changes)


def test_simsiam_sees_the_batch_statistics_of_each_view_by_itself():
    torch.manual_seed(0)
    encoder = learner.build(recipe()).encoder.train()
    apart = learner.encode(encoder, views()[:2], apart=True)
    torch.testing.assert_close(apart[0].pooled, encoder(views()[0].image).pooled)
    together = learner.encode(encoder, views()[:2])
    assert not torch.allclose(together[0].pooled, apart[0].pooled)
