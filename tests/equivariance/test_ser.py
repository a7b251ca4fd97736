"""SER acts on maps as the group acts on pictures, and rewards maps that follow, softly."""

import itertools
from dataclasses import replace

import forked
import pytest
import torch
from naive_ser import naive
from torch import nn
from torch.nn import functional as F
from toy_steps import small, toy_portion, toy_step

from equitools import backbones
from equitools.augment import geometry
from equitools.core.errors import UsageError
from equitools.core.records import Features, Portion, Step, View
from equitools.equivariance import ser
from equitools.equivariance.ser import relative, view_pairs

ELEMENTS = list(itertools.product((False, True), range(4)))


def matrix(element):
    """The matrix of a flip left–right and then quarter turns."""
    flip = torch.diag(torch.tensor([-1.0 if element[0] else 1.0, 1.0, 1.0], dtype=torch.float64))
    return geometry.quarter_turns(torch.float64)[element[1]] @ flip


def shape(element, height, width):
    return (width, height) if element[1] % 2 else (height, width)


class Mean(nn.Module):
    """Equivariant to flips and turns: the mean of each patch, then a map of its own per cell."""

    def __init__(self, width=12, patch=4):
        super().__init__()
        self.cells, self.patch = nn.Sequential(nn.Conv2d(3, width, 1), nn.Tanh()), patch

    def forward(self, image):
        return self.cells(F.avg_pool2d(image, self.patch))


def seen(encoder, first, second, *, images=5, sizes=None, target=None):
    """A step of two views of random pictures, moved by elements of each image's own."""
    pictures = torch.randn(images, 3, 16, 24)
    views = []
    for i, elements in enumerate((first, second)):
        size = sizes[i] if sizes else shape(elements[0], 16, 24)
        image = geometry.act(pictures, elements, size)
        views.append(View(image, {}, torch.stack([matrix(e) for e in elements]), group="grid"))

    def features(network):
        found = [network(view.image) for view in views]
        return [Features(cells.mean((2, 3)), maps={2: cells}) for cells in found]

    target = None if target is None else features(target)
    portion = Portion(views, features(encoder), target)
    return Step([], [], None, None, 0.0, 0.0, {"grid": portion})


def mixed(odd):
    """Elements for five images that all turn the grid, or none of them does."""
    return [element for element in ELEMENTS + ELEMENTS if element[1] % 2 == odd][:5]


@pytest.fixture
def term():
    torch.manual_seed(0)
    return ser(12, small("simsiam"), out_dim=16)


@pytest.mark.parametrize(("first", "second"), itertools.product((0, 1), (0, 1)))
def test_every_positive_of_an_equivariant_encoder_has_cosine_one(term, first, second):
    step = seen(Mean(), mixed(first), mixed(second)[::-1])
    queries, keys = term.aligned(step.portions["grid"], 0, 1)
    for one, other in zip(queries, keys, strict=True):
        torch.testing.assert_close((one * other).sum(-1), torch.ones(one.shape[:-1]))
    found = term.diagnostics(step)
    assert found["positive"] == pytest.approx(1.0)
    assert found["constant"] < 0.9


def test_another_group_element_would_not_align(term):
    step = seen(Mean(), mixed(0), mixed(0)[::-1])
    step.portions["grid"].views[0].matrix = step.portions["grid"].views[1].matrix
    assert term.diagnostics(step)["positive"] < 0.9


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("sizes", [None, ((16, 24), (20, 16))])
def test_the_loss_and_its_gradients_are_those_of_the_naive_loop(negatives, sizes):
    torch.manual_seed(0)
    term = ser(12, small("simsiam"), out_dim=16, negatives=negatives)
    encoder = Mean()
    step = seen(encoder, mixed(0), mixed(1), sizes=sizes)
    one, other = term(step)["ser"], naive(term, step, negatives)
    torch.testing.assert_close(one, other)
    leaves = [*encoder.parameters(), *term.parameters()]
    found = zip(
        torch.autograd.grad(one, leaves, retain_graph=True),
        torch.autograd.grad(other, leaves),
        strict=True,
    )
    for mine, theirs in found:
        assert theirs.norm() > 0
        assert (mine - theirs).norm() < 1e-4 * theirs.norm()


def test_on_right_angles_both_directions_are_all_anchors_of_nt_xent(term):
    """Without scalings the mean of both directions is SimCLR's loss over 2N tokens."""
    step = seen(Mean(), mixed(0), mixed(1))
    queries, keys = term.aligned(step.portions["grid"], 0, 1)
    z = torch.cat([queries[1], keys[1]]).flatten(1, 2)
    images, cells = z.shape[:2]
    logits = (z.flatten(0, 1) @ z.flatten(0, 1).T / term.temperature).view(images, cells, -1)
    own = torch.arange(images) % 5
    same = (own[:, None] == own).repeat_interleave(cells, 1)
    places = torch.arange(images * cells).roll(images * cells // 2).view(images, cells)
    positive = logits.gather(2, places[..., None])[..., 0]
    negatives = logits.masked_fill(same[:, None], -torch.inf)
    lse = torch.cat([negatives, positive[..., None]], 2).logsumexp(2)
    torch.testing.assert_close(term(step)["ser"], (lse - positive).mean())


def test_the_order_of_the_two_views_does_not_matter(term):
    step = seen(Mean(), mixed(0), mixed(1), sizes=((16, 24), (20, 16)))
    portion = step.portions["grid"]
    back = replace(
        step, portions={"grid": Portion(portion.views[::-1], portion.online[::-1], None)}
    )
    torch.testing.assert_close(term(step)["ser"], term(back)["ser"])


def test_slow_keys_are_constants_and_all_else_stays(term):
    torch.manual_seed(0)
    target_term = ser(12, small("mocov3"), out_dim=16, keys="slow")
    target_term.load_state_dict(term.state_dict())
    assert target_term.target
    assert not term.target
    encoder, network = Mean(), Mean()
    same = seen(encoder, mixed(0), mixed(1), target=encoder)
    torch.testing.assert_close(target_term(same)["ser"], term(same)["ser"])
    target_term(seen(encoder, mixed(0), mixed(1), target=network))["ser"].backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in target_term.parameters())


def test_several_pairs_are_averaged():
    """Views (0, 1) and (2, 3), or two groups: a global pair and pairs of local crops."""
    torch.manual_seed(0)
    term, draw = ser(4, small("simsiam"), out_dim=16), torch.Generator().manual_seed(0)
    first, second = (toy_portion(draw, torch.arange(4), 4) for _ in range(2))
    step = toy_step()
    alone = [term(replace(step, portions={"grid": one}))["ser"] for one in (first, second)]
    four = Portion(first.views + second.views, first.online + second.online, None)
    for groups in ({"grid": four}, {"grid": first, "pieces": second}):
        found = term(replace(step, portions=groups))["ser"]
        torch.testing.assert_close(found, torch.stack(alone).mean())
    assert view_pairs(four) == [(0, 1), (2, 3)]


SHARES = """
import torch
from equitools.core import distributed
from test_ser import Mean, gradients, mixed, of_images, seen
from toy_steps import small
from equitools.equivariance import ser

distributed.start("cpu")
for negatives in ("both", "cross"):
    torch.manual_seed(0)
    term, encoder = ser(12, small("simsiam"), out_dim=16, negatives=negatives), Mean()
    step = seen(encoder, mixed(0), mixed(1), sizes=((16, 24), (20, 16)))
    mine = of_images(step, encoder, slice(0, 3) if distributed.rank() == 0 else slice(3, 5))
    value = term(mine)["ser"]
    slopes = [distributed.mean_across(g) for g in gradients(value, encoder, term)]
    total = distributed.mean_across(value)
    distributed.world_size, world = (lambda: 1), distributed.world_size
    alone = term(step)["ser"]
    wanted = gradients(alone, encoder, term)
    distributed.world_size = world
    torch.testing.assert_close(total, alone.detach())
    for one, other in zip(slopes, wanted, strict=True):
        assert other.norm() > 0
        assert (one - other).norm() < 1e-4 * other.norm()
distributed.stop()
"""


def gradients(value, *modules):
    """Those of all parameters, the encoder's first."""
    return torch.autograd.grad(value, [p for module in modules for p in module.parameters()])


def of_images(step, encoder, images):
    """The step of a process that has some of the images."""
    portion = step.portions["grid"]
    views = [replace(v, image=v.image[images], matrix=v.matrix[images]) for v in portion.views]
    found = [encoder(view.image) for view in views]
    online = [Features(cells.mean((2, 3)), maps={2: cells}) for cells in found]
    return replace(step, portions={"grid": Portion(views, online, None)})


def test_two_processes_move_the_encoder_as_one_does():
    """Three images here and two there: loss and gradients are those of all five."""
    forked.programs(SHARES)


@pytest.mark.parametrize("name", ["vit_mini", "resnet_mini"])
def test_it_goes_with_vits_and_the_stages_of_cnns(name):
    torch.manual_seed(0)
    settings = {"cls_after": 1} if name == "vit_mini" else {}
    encoder = backbones.create({"name": name, **settings})
    layer = 1 if name == "vit_mini" else 2
    term = ser(encoder.channels(layer), small("simsiam"), layer=layer)

    def features(image):
        return encoder(image, maps=term.layers).maps[layer - 1]

    step = seen(features, mixed(0), mixed(1), sizes=((32, 24), (24, 40)))
    for record in step.portions["grid"].online:
        record.maps = {layer - 1: record.maps[2]}
    value = term(step)["ser"]
    value.backward()
    assert torch.isfinite(value)
    first, later = {
        "vit_mini": ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight"),
        "resnet_mini": ("conv1.0.weight", "layer2.0.conv1.weight"),
    }[name]
    assert encoder.trunk.get_parameter(first).grad.abs().sum() > 0
    assert encoder.trunk.get_parameter(later).grad is None


def test_a_trunk_goes_on_without_the_norm_of_its_own():
    """What leaves the encoder does not depend on SER's norm and projector."""
    term, maps = ser(12, small("simsiam"), out_dim=16), torch.randn(2, 12, 3, 4)
    before = maps.clone()
    term.project(Features(maps.mean((2, 3)), maps={2: maps}))
    assert torch.equal(maps, before)


def test_matrices_are_read_alone_without_actions():
    portion = toy_portion(torch.Generator().manual_seed(0), torch.arange(6), 4)
    assert all(not view.action for view in portion.views)
    there, back = relative(portion, 0, 1), relative(portion, 1, 0)
    for one, other in zip(there, back, strict=True):
        assert geometry.elements((matrix(one) @ matrix(other))[None]) == [(False, 0)]


@pytest.mark.parametrize("fault", ["none", "odd", "crooked"])
def test_a_step_that_does_not_fit_is_refused(term, fault):
    step = toy_step()
    portion = step.portions["grid"]
    if fault == "none":
        step.portions = {}
    elif fault == "odd":
        portion.views.pop()
    else:
        portion.views[0].matrix = portion.views[0].matrix + 0.01
    told = {"none": "views.grid.portion", "odd": "count is 1, say 2", "crooked": "something else"}
    with pytest.raises(UsageError, match=told[fault]):
        ser(4, small("simsiam"), out_dim=8)(step)
