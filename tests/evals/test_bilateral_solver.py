"""The bilateral solver: a small dense problem, flat surfaces, and edges that are kept."""

import numpy as np
import pytest

from equitools.evals.segmentation.bilateral_solver import bistochastic, coordinates, grid, solve

SIDES = {"spatial": 4, "luma": 32, "chroma": 32}


def image(height=12, width=14):
    """Left dark, right bright, with noise."""
    pixels = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    pixels[:, width // 2 :] += 180
    return pixels.astype(np.uint8)


def test_the_blur_joins_cells_that_differ_by_one_in_one_dimension():
    cells = coordinates(image(), *SIDES.values())
    splat, blur = grid(image(), **SIDES)
    occupied = [splat[[i]].indices for i in range(splat.shape[0])]
    place = np.array([cells[pixels[0]] for pixels in occupied])
    for pixels, cell in zip(occupied, place, strict=True):
        assert (cells[pixels] == cell).all(), "a cell holds the pixels of one place and color"
    distance = np.abs(place[:, None] - place[None]).sum(-1)
    expected = np.where(distance == 0, 10, np.where(distance == 1, 1, 0))
    assert np.array_equal(blur.toarray(), expected)


def test_the_solution_is_that_of_the_dense_equations():
    picture, target = image(), np.random.default_rng(1).random((12, 14))
    splat, blur = (m.toarray() for m in grid(picture, **SIDES))
    count = splat.sum(1)
    n = bistochastic(blur, count)
    filtered = np.diag(n) @ blur @ np.diag(n)
    matrix = 256 * (np.diag(filtered.sum(1)) - filtered) + 0.999 * np.diag(count)
    y = np.linalg.solve(matrix, 0.999 * splat @ target.ravel())
    found = solve(picture, target, **SIDES, steps=500)
    assert found == pytest.approx((splat.T @ y).reshape(12, 14), abs=1e-4)


def test_the_blur_is_bistochastic_where_it_has_been_made_so():
    splat, blur = grid(image(), **SIDES)
    count = splat @ np.ones(12 * 14)
    n = bistochastic(blur, count)
    assert n * (blur @ n) == pytest.approx(count, rel=0.02)


def test_a_constant_mask_stays_as_it_is():
    for value in (0.0, 1.0):
        found = solve(image(), np.full((12, 14), value))
        assert found == pytest.approx(np.full((12, 14), value), abs=1e-3)


def test_a_ragged_mask_is_drawn_to_the_edge_of_the_surface():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 16:48] = (200, 60, 60)
    truth = picture.any(2)
    ragged = np.roll(truth, 5, axis=1)
    found = solve(picture, ragged.astype(float)) > 0.5
    before, after = ((m & truth).sum() / (m | truth).sum() for m in (ragged, found))
    assert before < 0.75
    assert after > 0.99
