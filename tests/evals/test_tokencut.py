"""TokenCut: the published cut of any keys, by another solver, whatever the sign."""

import numpy as np
import pytest
import torch

from equitools.core.errors import NumericalError
from equitools.evals.segmentation import tokencut


def keys(height=9, width=11, seed=0, noise=0.6):
    """Keys d h w of a scene: two blobs on a ground, with noise."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randn(3, 16, generator=draw)
    where = torch.zeros(height, width, dtype=torch.long)
    where[2:6, 2:7] = 1
    where[7:, 9:] = 2
    found = kinds[where] + noise * torch.randn(height, width, 16, generator=draw)
    return found.movedim(-1, 0)


def published(found, tau=0.2):
    """The cut of keys d h w as the paper's authors describe it, step by step."""
    from scipy.linalg import eigh
    from scipy.ndimage import label

    _, height, width = found.shape
    vectors = found.flatten(1).T.double().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = np.where(unit @ unit.T > tau, 1.0, 1e-5)
    degrees = np.diag(weights.sum(1))
    y = eigh(degrees - weights, degrees, subset_by_index=[1, 1])[1][:, 0]
    inside = y > y.mean()
    seed = np.argmax(np.abs(y))
    if not inside[seed]:
        inside = ~inside
    pieces, _ = label(inside.reshape(height, width))
    return pieces == pieces.flat[seed]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_the_cut_is_that_of_a_dense_solver(seed, noise):
    found = keys(seed=seed, noise=noise)
    cut = tokencut.cut(found, 0.2)
    assert cut.sure
    assert np.array_equal(cut.mask, published(found))


def test_the_vector_is_the_second_of_the_generalized_problem():
    weights = tokencut.graph(keys(20, 20).flatten(1).T, 0.2)
    mine, theirs = tokencut.lanczos(weights), tokencut.dense(weights)
    mine, theirs = (y / np.linalg.norm(y) for y in (mine, theirs))
    assert abs(mine @ theirs) == pytest.approx(1, abs=1e-12)
    assert np.abs(mine - np.sign(mine @ theirs) * theirs).max() < 1e-8


def test_weights_are_one_above_the_threshold_and_almost_nothing_else():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [0.0, 0.0]])
    weights = tokencut.graph(vectors, 0.2)
    weak = 1e-5
    expected = [[1, 1, weak, weak], [1, 1, 1, weak], [weak, 1, 1, weak], [weak] * 4]
    assert weights == pytest.approx(np.array(expected))


def test_a_cut_says_how_many_pairs_of_patches_are_alike():
    two = torch.eye(2).repeat(1, 4).reshape(2, 2, 4)  # patches of two kinds, four of each
    assert tokencut.cut(two, 0.2).alike == 0.5
    assert tokencut.cut(two + 1, 0.2).alike == 1


def test_the_piece_holds_the_seed_whatever_the_sign():
    y = np.array([[0.1, 0.9, -0.2], [-0.3, 0.4, 0.8], [0.7, -0.5, -0.6]])
    for sign in (1, -1):
        mask, oriented, seed = tokencut.piece(sign * y)
        assert seed == 1
        assert oriented.flat[seed] == 0.9
        assert mask.tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]], "0.7 touches by a corner only"
    mask, _, seed = tokencut.piece(-y * np.array([[1, 1, 1], [1, 1, 1], [1, 1, 2]]))
    assert seed == 8
    assert mask.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_of_two_largest_patches_the_first_is_the_seed_whatever_rounding_says():
    y = np.array([[0.1, -0.2, 0.9, 0.1, 0.9, -0.8]])
    for rounding in (1e-15, -1e-15):
        mask, _, seed = tokencut.piece(y + rounding * np.arange(6))
        assert seed == 2
        assert mask.tolist() == [[0, 0, 1, 0, 0, 0]]


def test_equal_groups_cluster_and_a_dense_solver_decides():
    """Three groups of one size: the second eigenvalue is there twice, and no vector is the one."""
    vectors = torch.eye(3).repeat_interleave(12, 0)
    weights = tokencut.graph(vectors, 0.2)
    assert tokencut.lanczos(weights) is None
    y, sure = tokencut.second_vector(weights)
    assert not sure
    assert np.array_equal(y, tokencut.dense(weights))


def test_close_eigenvalues_are_told_apart_or_left_to_a_dense_solver():
    sizes = torch.tensor([40, 41, 90, 92])
    vectors = torch.eye(4).repeat_interleave(sizes, 0)
    vectors[:40, 1] += torch.linspace(0, 0.3, 40)  # a few of one group are like the next
    weights = tokencut.graph(vectors, 0.2)
    y, _ = tokencut.second_vector(weights)
    dense = tokencut.dense(weights)
    mine, theirs = (tokencut.piece(v.reshape(1, -1))[0] for v in (y, dense))
    assert np.array_equal(mine, theirs)


def test_tiny_grids_and_flat_pictures_have_a_cut():
    assert tokencut.cut(torch.randn(4, 2, 2), 0.2).mask.any()
    flat = tokencut.cut(torch.ones(4, 5, 5), 0.2)
    assert flat.mask.any()
    assert not flat.sure


def test_keys_that_are_not_finite_are_an_error():
    broken = keys()
    broken[0, 0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        tokencut.cut(broken, 0.2)
