"""Heads have the published sizes, initializations and invariances."""

import math

import pytest
import torch

from equitools.nn.heads import DINOHead, WeightNormLinear, simsiam_predictor, simsiam_projector
from equitools.nn.losses.parameter_balance import balance, magnitude


def count(module, trained=True):
    return sum(p.numel() for p in module.parameters() if p.requires_grad == trained)


@pytest.mark.parametrize(
    ("backbone", "dims", "sizes"),
    [
        ("ViT-S", (307, 77), (22_128_896, 21_657_856)),
        ("ViT-T", (153, 39), (21_813_504, 21_580_032)),
        ("ResNet-50", (1638, 410), (24_854_784, 22_339_840)),
        ("ResNet-18", (409, 103), (22_337_792, 21_711_104)),
        ("VMamba-T", (614, 154), (22_757_632, 21_815_552)),
    ],
)
def test_dino_head_has_the_published_number_of_parameters(backbone, dims, sizes):
    with torch.device("meta"):
        heads = [DINOHead(dim) for dim in dims]
    assert [count(head) for head in heads] == list(sizes)
    assert [count(head, trained=False) for head in heads] == [65536, 65536]


def test_logits_of_a_fresh_dino_head_are_cosines():
    head = DINOHead(12, 64)
    logits = head(1000 * torch.randn(32, 12))
    assert logits.abs().max() <= 1 + 1e-6
    codes = head.bottleneck(torch.randn(32, 12))
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(32))


def test_lengths_of_directions_do_not_change_a_dino_head():
    head, x = DINOHead(12, 64), torch.randn(8, 12)
    before = head(x)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(3.0)
    torch.testing.assert_close(head(x), before)


def test_dino_head_starts_as_published():
    head = DINOHead(384, 4096)
    first = head.mlp.get_parameter("0.weight").detach()
    assert first.std() == pytest.approx(0.02, rel=0.02)
    biases = [p for name, p in head.mlp.named_parameters() if name.endswith("bias")]
    assert not any(bias.detach().any() for bias in biases)
    v, g = head.last_layer.weight_v.detach(), head.last_layer.weight_g
    assert v.abs().max() <= 1 / 16
    assert v.std() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.01)
    assert torch.equal(g, torch.ones(4096, 1))
    assert not g.requires_grad


def test_gains_can_be_trained():
    layer = WeightNormLinear(8, 16, freeze_gain=False)
    layer(torch.randn(4, 8)).sum().backward()
    assert layer.weight_g.grad is not None


def test_weight_norm_is_that_of_torch():
    ours = WeightNormLinear(8, 16)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 16, bias=False))
    theirs.parametrizations.weight.original0.data = ours.weight_g.data
    theirs.parametrizations.weight.original1.data = ours.weight_v.data
    x = torch.randn(4, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_simsiam_heads_have_the_published_power():
    """Σp² of fresh heads, 6144 and 1367: what the paper's Table 1 starts from."""
    with torch.no_grad():
        projector = magnitude(simsiam_projector(2048, 2048))
        predictor = magnitude(simsiam_predictor(2048, 512))
    assert float(projector) == pytest.approx(6144.3, rel=0.002)
    assert float(predictor) == pytest.approx(1366.7, rel=0.002)


def test_power_of_a_fresh_vit_small_pair():
    """S_IR near 89.5 k and a gap near 188: λ·gap = 0.19 with λ = 0.001."""
    torch.manual_seed(0)
    invariant, equivariant = (DINOHead(dim).requires_grad_(False) for dim in (307, 77))
    assert float(magnitude(invariant)) == pytest.approx(89_500, rel=0.002)
    assert float(balance([invariant], [equivariant])) == pytest.approx(188, abs=8)
    # Under the printed norm (a root) the same gap would be a few ten-thousandths.
    assert 0.001 * float(balance([invariant], [equivariant], norm="root")) < 2e-3


def test_the_last_projector_bias_is_void_and_frozen_unless_asked():
    frozen, trained = (simsiam_projector(8, 16, freeze_bias=flag) for flag in (True, False))
    bias = trained.get_parameter("6.bias")
    assert [frozen.get_parameter("6.bias").requires_grad, bias.requires_grad] == [False, True]
    x = torch.randn(32, 8)
    before = trained(x)
    bias.data += 5.0
    torch.testing.assert_close(trained(x), before, atol=1e-4, rtol=1e-4)
