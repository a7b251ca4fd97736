"""What a plan measures on a few pictures holds for many."""

import pytest
import torch

from equitools.training import estimate, learner, recipe

TINY = {"hidden_dim": 16, "bottleneck_dim": 64}


def test_activations_of_few_samples_foretell_those_of_many():
    torch.manual_seed(0)
    settings = recipe.resolve(
        {
            "backbone": {"name": "vit_mini", "split": 0.8},
            "objective": {"name": "dino", "out_dim": 4096, **TINY},
            "equivariance": {"clever": {"out_dim": 4096}},
            "views": {"global": {"size": 32}, "local": {"size": 16, "count": 2}},
        }
    )
    model = learner.build(settings)
    fixed, each = estimate.activations(model, settings["views"])
    assert fixed + 16 * each == pytest.approx(
        estimate.saved_bytes(model, settings["views"], 16), rel=1e-3
    )
    # The prototypes of two heads, normed, are kept once, however many samples there are.
    assert fixed == pytest.approx(2 * 4 * 4096 * 64, rel=0.1)
