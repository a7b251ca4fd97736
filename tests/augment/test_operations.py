"""Each operation computes what PIL and torchvision compute from the same parameters."""

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch.nn import functional as F
from torchvision.transforms import ElasticTransform, InterpolationMode
from torchvision.transforms import functional as tv

from equitools import augment
from equitools.augment import engines, geometry, operations, rng
from equitools.augment.operations import blur, crop, elastic, flip, gray, jitter, rotation, solarize


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth colorful picture with edges, uint8 3 h w."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 9, generator=g)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    smooth[:, height // 3 : height // 2, width // 4 : width // 2] = torch.rand(3, 1, 1, generator=g)
    return (smooth * 255).round().to(torch.uint8)


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


OPERATIONS = operations.menu()


def test_the_menu_is_the_package_namespace():
    assert set(OPERATIONS) >= {
        "crop",
        "flip",
        "rotation",
        "elastic",
        "jitter",
        "gray",
        "blur",
        "solarize",
    }


def test_operations_read_columns_of_their_own():
    taken = [i for op in OPERATIONS.values() for i in range(op.COLUMNS.start, op.COLUMNS.stop)]
    assert len(set(taken)) == len(taken)
    assert max(taken) < rng.WIDTH


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"crop"}))
def test_identity_parameters_do_nothing(name):
    op = OPERATIONS[name]
    images = torch.stack([photo(24, 24, i) for i in range(3)])
    images = images if hasattr(op, "matrix") else images.float() / 255
    p = torch.tensor(op.IDENTITY, dtype=torch.float64).expand(3, -1)
    if name == "elastic":
        p = torch.cat((p, torch.tensor([[5.0, 17.0]]).expand(3, 2).double()), 1)
    assert torch.allclose(op.apply(images, p).float(), images.float(), atol=1e-5)
    assert engines.act(op, images, p) is images
    if hasattr(op, "matrix"):
        assert torch.equal(op.matrix(p), geometry.identity(3))
    if hasattr(op, "delta"):
        assert not op.delta(p, p).any()


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"crop"}))
def test_draws_apply_per_sample_and_leave_their_input_alone(name):
    op = OPERATIONS[name]
    images = torch.stack([photo(20, 20, i) for i in range(6)]).float() / 255
    before = images.clone()
    uniforms = np.random.default_rng(3).random((6, 64))[:, op.COLUMNS]
    p = torch.from_numpy(op.draw(uniforms))
    assert p.shape[1] >= len(op.NAMES) == len(op.IDENTITY)
    together = op.apply(images, p)
    alone = torch.cat([op.apply(images[i : i + 1], p[i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [16, 40, 96])
def test_crop_agrees_with_pil(size):
    image = photo(75, 100)
    window = np.array([10 / 75, 21 / 100, 50 / 75, 60 / 100])
    ours = crop.apply(image[None], torch.from_numpy(window)[None], size)[0]
    theirs = tv.resized_crop(as_pil(image), 10, 21, 50, 60, [size] * 2, InterpolationMode.BICUBIC)
    difference = (ours.int() - from_pil(theirs).int()).abs()
    assert difference.max() <= 3
    assert difference.float().mean() < 0.2


def test_crops_of_photos_are_pils_but_for_the_rounding_of_weights():
    image, window = photo(240, 320), (20, 31, 180, 200)
    fractions = torch.tensor([[20 / 240, 31 / 320, 180 / 240, 200 / 320]], dtype=torch.float64)
    theirs = tv.resized_crop(as_pil(image), *window, [96] * 2, InterpolationMode.BICUBIC)
    difference = (crop.apply(image[None], fractions, 96)[0].int() - from_pil(theirs).int()).abs()
    assert difference.float().mean() <= 0.05


def test_rotation_is_pils_to_the_bit():
    image = photo(31, 31)
    angles = [-173.2, -90.0, -45.0, -0.3, 0.0, 12.5, 45.0, 89.9, 90.0, 133.7, 180.0]
    ours = rotation.apply(image.expand(len(angles), -1, -1, -1), column(*angles))
    theirs = [from_pil(tv.rotate(as_pil(image), angle)) for angle in angles]
    assert torch.equal(ours, torch.stack(theirs))
    wide = photo(20, 37)
    assert torch.equal(
        rotation.apply(wide[None], column(30.0))[0], from_pil(tv.rotate(as_pil(wide), 30.0))
    )


def test_right_angles_are_exact_and_counter_clockwise():
    image = photo(32, 32)[None].expand(4, -1, -1, -1)
    turned = rotation.apply(image, column(0, 90, 180, -90))
    for k, picture in zip((0, 1, 2, 3), turned, strict=True):
        assert torch.equal(picture, torch.rot90(image[0], k, (-2, -1)))


def test_flip_agrees_with_torchvision_and_undoes_itself():
    images = torch.stack([photo(20, 24, i) for i in range(2)])
    p = column(1, 0)
    once = flip.apply(images, p)
    assert torch.equal(once[0], tv.hflip(images[0]))
    assert torch.equal(once[1], images[1])
    assert torch.equal(flip.apply(once, p), images)


@pytest.mark.parametrize("order", permutations(range(4)))
def test_jitter_agrees_with_torchvision_in_floats(order):
    image = photo(40, 30).float() / 255
    factors = (1.3, 0.7, 1.8, -0.07)
    p = torch.tensor([[*factors, *order]], dtype=torch.float64)
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    theirs = image
    for number in order:
        theirs = changes[number](theirs, factors[number])
    assert torch.allclose(jitter.apply(image[None], p)[0], theirs, atol=3e-5)


def test_jitter_agrees_with_pil_within_its_rounding():
    image = photo(40, 30)
    theirs = as_pil(image)
    for change, factor in (
        (tv.adjust_contrast, 1.3),
        (tv.adjust_hue, 0.08),
        (tv.adjust_brightness, 0.8),
        (tv.adjust_saturation, 1.2),
    ):
        theirs = change(theirs, factor)
    p = torch.tensor([[0.8, 1.3, 1.2, 0.08, 1, 3, 0, 2]], dtype=torch.float64)
    ours = jitter.apply(image[None].float() / 255, p)[0] * 255
    difference = (ours - from_pil(theirs).float()).abs()
    assert difference.mean() < 2
    assert difference.max() < 16


def test_hue_of_grays_and_of_pure_colors():
    pure = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.5, 0.5, 0.5]])
    image = pure.T.reshape(1, 3, 1, 5)
    third = torch.tensor([[1, 1, 1, 1 / 3, 0, 1, 2, 3]], dtype=torch.float64)
    expected = pure[:, [2, 0, 1]].T.reshape(1, 3, 1, 5)
    assert torch.allclose(jitter.apply(image, third), expected, atol=1e-5)


def test_gray_agrees_with_torchvision():
    image = photo(20, 20).float() / 255
    ours = gray.apply(torch.stack((image, image)), column(1, 0))
    assert torch.allclose(ours[0], tv.rgb_to_grayscale(image, 3), atol=1e-6)
    assert torch.equal(ours[1], image)


def test_solarize_agrees_with_pil():
    image = photo(30, 30)
    ours = solarize.apply(image[None].float() / 255, column(128 / 255))[0] * 255
    assert torch.equal(ours.round().to(torch.uint8), from_pil(ImageOps.solarize(as_pil(image))))


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.4, 2.0])
def test_blur_agrees_with_the_true_gaussian_and_nearly_with_pil(sigma):
    image = photo(96, 96)
    ours = blur.apply(image[None].float() / 255, column(sigma))[0] * 255
    radius = int(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image[None].float(), [radius] * 4, mode="replicate")
    dense = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.mT, groups=3)[0]
    assert torch.allclose(ours, dense, atol=1e-3)
    theirs = from_pil(as_pil(image).filter(ImageFilter.GaussianBlur(sigma))).float()
    assert (ours - theirs).abs().mean() <= 0.6


def test_blur_keeps_constants_whatever_the_edge():
    image = torch.full((2, 3, 9, 9), 0.6)
    assert torch.allclose(blur.apply(image, column(2.0, 0.1)), image, atol=1e-6)


def torchvision_displacement(noise: torch.Tensor, alpha: float, sigma: float, monkeypatch):
    """ElasticTransform's field when its generator gives our noise."""
    planes = iter((noise[:, :1], noise[:, 1:]))
    monkeypatch.setattr(torch, "rand", lambda *a, **k: (next(planes) + 1) / 2)
    found = ElasticTransform.get_params([alpha] * 2, [sigma] * 2, list(noise.shape[-2:]))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (96, 96)])
def test_elastic_field_is_torchvisions_for_the_same_noise(size, monkeypatch):
    noise = elastic.hashed(torch.tensor([123456789012345]), *size)
    theirs = torchvision_displacement(noise, 100.0, 3.5, monkeypatch)
    ours = elastic.field(noise, torch.tensor([100.0]), torch.tensor([3.5]))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_elastic_pictures_are_torchvisions(monkeypatch):
    image = photo(64, 64).float() / 255
    p = torch.tensor([[100.0, 5.0, 2.0**50 + 7]], dtype=torch.float64)
    noise = elastic.hashed(p[:, 2], 64, 64)
    theirs = torchvision_displacement(noise, 100.0, 5.0, monkeypatch)
    expected = tv.elastic_transform(image, theirs, fill=[0.0])
    assert torch.allclose(elastic.apply(image[None], p)[0], expected, atol=2e-5)


def test_elastic_kernels_wider_than_the_picture_still_average():
    matrix = elastic.reflected(5.0, 16)
    assert torch.allclose(matrix.sum(1), torch.ones(16, dtype=torch.float64))
    assert (matrix >= 0).all()


def test_hashed_noise_is_uniform_and_independent():
    noise = elastic.hashed(torch.tensor([1, 2, 2**32 + 1]), 128, 128).double()
    assert noise.min() > -1
    assert noise.max() < 1
    flat = noise.flatten(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 0.02
    assert (flat.var(1) - 1 / 3).abs().max() < 0.01
    beside = torch.corrcoef(torch.cat((flat, flat.roll(1, 1))))
    assert (beside - torch.eye(12)).abs().max() < 0.04
    histogram = torch.histc(flat, 32, -1, 1) / flat.numel()
    assert (histogram - 1 / 32).abs().max() < 2.5e-3


def test_hashed_noise_does_not_change_between_versions():
    noise = elastic.hashed(torch.tensor([2**40 + 5]), 2, 2).flatten()
    words = ((noise + 1) * 32768 - 0.5).round().long().tolist()
    assert words == reference_hash(2**40 + 5, 4)


def reference_hash(seed: int, count: int) -> list[int]:
    """The same noise in Python's unbounded integers: the x halves, then the y halves."""

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x735A2D97 & 0xFFFFFFFF
        return x ^ x >> 15

    start = mix(seed & 0xFFFFFFFF)
    salt = mix(seed >> 32 ^ start)
    words = [mix(mix(i + start & 0xFFFFFFFF) ^ salt) for i in range(count)]
    return [w >> 16 for w in words] + [w & 0xFFFF for w in words]


def test_normalize_and_unnormalize_are_inverse():
    image = photo(8, 8)[None]
    there = augment.normalize(image)
    assert torch.allclose(there[0], tv.normalize(image[0] / 255, augment.MEAN, augment.STD))
    assert torch.allclose(augment.unnormalize(there), image / 255, atol=1e-6)


def test_deltas_vanish_for_equal_parameters_and_wrap_angles():
    assert rotation.delta(column(170), column(-170)).item() == pytest.approx(-20)
    assert flip.delta(column(1, 0), column(0, 0))[:, 0].tolist() == [1, 0]
    p = torch.tensor([[0.1, 0.2, 0.4, 0.6]])
    assert torch.equal(crop.delta(p, p), torch.zeros(1, 4))
