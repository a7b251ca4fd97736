"""Operations commute with their matrices, and matrices form a group."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from equitools.augment import geometry
from equitools.augment.operations import crop, flip, rotation


def smooth(size: int, channels: int = 3) -> torch.Tensor:
    coarse = torch.rand(1, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_inverse_and_composition():
    p = torch.from_numpy(crop.draw(np.random.default_rng(0).random((5, 24)), 60, 80))
    m = geometry.compose(crop.matrix(p), rotation.matrix(column(10, 20, -50, 70, 5)))
    assert torch.allclose(geometry.compose(m, geometry.invert(m)), geometry.identity(5))
    points = torch.rand(5, 4, 2, dtype=torch.float64)
    back = geometry.move(geometry.move(points, m), geometry.invert(m))
    assert torch.allclose(back, points)


def test_first_matrix_acts_first():
    flipped = flip.matrix(column(1))
    turned = rotation.matrix(column(90))
    right = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    there = geometry.move(right, geometry.compose(flipped, turned))
    assert torch.allclose(there, torch.tensor([[[0.0, 1.0]]], dtype=torch.float64))


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("flipped", [0, 1])
def test_flips_and_right_angles_commute_with_their_matrix_exactly(angle, flipped):
    image = torch.rand(1, 3, 12, 12)
    applied = rotation.apply(flip.apply(image, column(flipped)), column(angle))
    matrix = geometry.compose(flip.matrix(column(flipped)), rotation.matrix(column(angle)))
    assert torch.equal(geometry.warp(image, matrix), applied)
    assert torch.equal(geometry.warp(applied, geometry.invert(matrix)), image)


def test_right_angles_permute_maps_that_are_not_square():
    maps = torch.rand(2, 8, 4, 6)
    turned = geometry.warp(maps, rotation.matrix(column(90)).expand(2, 3, 3), size=(6, 4))
    assert torch.equal(turned, torch.rot90(maps, 1, (-2, -1)))


def test_exact_and_interpolated_samples_share_a_batch():
    image = smooth(32).expand(3, -1, -1, -1)
    warped = geometry.warp(image, rotation.matrix(column(0, 33, 90)))
    assert torch.equal(warped[0], image[0])
    assert torch.equal(warped[2], torch.rot90(image[0], 1, (-2, -1)))
    alone = geometry.warp(image[:1], rotation.matrix(column(33)))
    assert torch.equal(warped[1], alone[0])


def test_warping_by_right_angles_is_what_interpolation_tends_to():
    image = smooth(32)
    near = geometry.warp(image, rotation.matrix(column(90.001)), mode="bilinear")
    assert torch.allclose(
        near[..., 1:-1, 1:-1], torch.rot90(image, 1, (-2, -1))[..., 1:-1, 1:-1], atol=1e-3
    )


@pytest.mark.parametrize("angle", [17.0, -63.0])
def test_rotation_commutes_with_its_matrix_in_the_interior(angle):
    image = smooth(96)
    applied = rotation.apply(image, column(angle))
    warped = geometry.warp(image, rotation.matrix(column(angle)), mode="nearest")
    inner = (slice(None), slice(None), slice(20, -20), slice(20, -20))
    same = (applied[inner] == warped[inner]).all(1)
    assert same.float().mean() > 0.99  # ties between neighbours are all that differs
    bilinear = geometry.warp(image, rotation.matrix(column(angle)))
    assert (applied[inner] - bilinear[inner]).abs().max() < 0.06


def test_rotation_of_wide_pictures_has_its_aspect_in_the_matrix():
    image = F.interpolate(smooth(64), (48, 96))
    applied = rotation.apply(image, column(25.0))
    warped = geometry.warp(image, rotation.matrix(column(25.0), aspect=2.0), mode="nearest")
    assert (applied == warped).all(1).float().mean() > 0.98


def test_crop_commutes_with_its_matrix_in_the_interior():
    image = (smooth(96).clamp(0, 1) * 255).round().to(torch.uint8)
    p = torch.tensor([[12 / 96, 24 / 96, 48 / 96, 64 / 96]], dtype=torch.float64)
    applied = crop.apply(image, p, size=64).float()
    warped = geometry.warp(image.float(), crop.matrix(p), size=(64, 64), mode="bicubic")
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    assert (applied[inner] - warped[inner]).abs().max() < 3


def test_warp_carries_gradients():
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    geometry.warp(image, rotation.matrix(column(90, 30))).sum().backward()
    assert image.grad is not None
    assert (image.grad[0] == 1).all()
    assert (image.grad[1, :, 3:5, 3:5] > 0).all()
