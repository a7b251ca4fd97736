"""ρ_g on maps: a representation of the flips and turns, on grids of any shape, and scalings."""

import itertools

import pytest
import torch

from equitools.augment import geometry

ELEMENTS = list(itertools.product((False, True), range(4)))


def matrix(element):
    """The matrix of a flip left–right and then quarter turns."""
    flip = torch.diag(torch.tensor([-1.0 if element[0] else 1.0, 1.0, 1.0], dtype=torch.float64))
    return geometry.quarter_turns(torch.float64)[element[1]] @ flip


def shape(element, height, width):
    return (width, height) if element[1] % 2 else (height, width)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
@pytest.mark.parametrize(("g", "h"), itertools.product(ELEMENTS, ELEMENTS))
def test_acting_twice_is_acting_by_the_product_exactly(g, h, size):
    """ρ_g ρ_h = ρ_gh on square grids and others; so the inverse undoes."""
    maps = torch.randn(2, 3, *size)
    (gh,) = geometry.elements((matrix(g) @ matrix(h))[None])
    middle, last = shape(h, *size), shape(gh, *size)
    assert last == shape(g, *middle)
    twice = geometry.act(geometry.act(maps, [h, h], middle), [g, g], last)
    assert torch.equal(twice, geometry.act(maps, [gh, gh], last))


def test_every_image_is_moved_by_its_own_element():
    maps = torch.randn(8, 3, 4, 4)
    moved = geometry.act(maps, ELEMENTS, (4, 4))
    for one, before, (flip, turns) in zip(moved, maps, ELEMENTS, strict=True):
        assert torch.equal(one, (before.flip(-1) if flip else before).rot90(turns, (-2, -1)))
    assert geometry.act(maps[:0], [], (2, 6)).shape == (0, 3, 2, 6)


def test_scaling_holds_edges_and_is_nearly_undone_on_smooth_maps():
    assert (geometry.act(torch.ones(1, 2, 3, 4), [(True, 1)], (7, 5)) - 1).abs().max() < 1e-6
    y, x = torch.meshgrid(torch.linspace(0, 3, 14), torch.linspace(0, 3, 14), indexing="ij")
    smooth = (torch.sin(x) * torch.cos(y))[None, None]
    there = geometry.act(smooth, [(False, 1)], (18, 11))
    back = geometry.act(there, [(False, 3)], (14, 14))
    assert (back - smooth).norm() < 0.02 * smooth.norm()
