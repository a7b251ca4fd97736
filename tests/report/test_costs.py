"""Costs equal the columns of the paper's Table 2."""

import pytest
import torch

from equitools import backbones
from equitools.report import costs

PAPER = {
    "vit_tiny_patch16_224": "5.5M/1.26G",
    "resnet18": "11.2M/1.83G",
    "vit_small_patch16_224": "21.7M/4.61G",
    "resnet50": "23.5M/4.14G",
    "vmamba_tiny": "29.5M/4.84G",
}


@pytest.mark.parametrize("name", PAPER)
def test_costs_are_those_of_table_2(name):
    encoder = backbones.create({"name": name, "split": 0.8})
    assert str(costs.measure(encoder)) == PAPER[name]


def test_counting_leaves_the_network_as_it_was():
    encoder = backbones.create({"name": "resnet_mini"}).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    costs.measure(encoder, 32)
    assert not encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_attention_is_counted_although_it_runs_fused():
    """65 tokens: two products of 65² × 32 in each of 3 heads and 4 blocks."""
    encoder = backbones.create({"name": "vit_mini"})
    blocks = 4 * (12 * 96**2 * 65 + 2 * 65**2 * 96)
    embedding = 64 * 96 * 3 * 4**2
    assert costs.flops(encoder, 32) == pytest.approx(blocks + embedding, rel=0.01)
    assert encoder.trunk.blocks[0].attn.fused_attn
