"""J and F of masks: as loops over pixels count them, and as the protocol averages them."""

import math

import numpy as np
import pytest

from equitools.core.errors import DataError
from equitools.evals.segmentation.j_and_f import (
    Statistics,
    boundary,
    contour,
    frame,
    objects,
    region,
    statistics,
    summary,
)


def blobs(seed, shape=(40, 61), count=3):
    """Labels of disks, some of which touch the border."""
    draw = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    for label in range(1, count + 1):
        y, x = draw.uniform(0, shape[0]), draw.uniform(0, shape[1])
        labels[np.hypot(rows - y, columns - x) < draw.uniform(3, 12)] = label
    return labels


def slow_contour(mask):
    """The pixels of a contour, one after the other."""
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            ahead = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(b < height and a < width and mask[b, a] != mask[y, x] for b, a in ahead):
                found.add((y, x))
    return found


def slow_boundary(found, truth):
    """F by comparing every pixel of a contour with every pixel of the other."""
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    one, other = slow_contour(found), slow_contour(truth)
    if not one or not other:
        return float(one == other)

    def near(these, those):
        close = [any((y - b) ** 2 + (x - a) ** 2 <= radius**2 for b, a in those) for y, x in these]
        return sum(close) / len(these)

    precision, recall = near(one, other), near(other, one)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_contours_are_matched_as_by_a_loop_over_pixels(seed):
    shape = (40, 61) if seed % 2 else (60, 400)  # a disk of 1, and of 4 pixels
    size = (slice(0, 40), slice(0, 61))
    found, truth = np.zeros(shape, bool), np.zeros(shape, bool)
    corner = (slice(-40, None), slice(-61, None)) if seed % 3 else size
    found[corner], truth[corner] = blobs(seed) > 0, blobs(seed + 100) > 0
    assert contour(found).sum() > 10
    assert set(zip(*np.nonzero(contour(found)), strict=True)) == slow_contour(found)
    assert boundary(found, truth) == slow_boundary(found, truth)
    shifted = np.roll(found, 2, axis=1)
    assert 0 < boundary(found, shifted) == slow_boundary(found, shifted)


def test_a_contour_pixel_may_be_as_far_as_the_disk_and_no_farther():
    truth, found = np.zeros((300, 400), bool), np.zeros((300, 400), bool)
    truth[:, 200] = True
    # A column's contour is two pixels wide, and 0.008 of this diagonal are four.
    for step, expected in ((4, 1.0), (5, 0.5), (6, 0.0)):
        found[:] = False
        found[:, 200 + step] = True
        assert boundary(found, truth) == expected


def test_empty_masks_follow_the_rules():
    empty, some = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    some[5:9, 5:9] = True
    assert region(empty, empty) == boundary(empty, empty) == 1
    assert region(empty, some) == boundary(empty, some) == 0
    assert region(some, empty) == boundary(some, empty) == 0
    assert region(some, np.roll(some, 2, 0)) == 8 / 24


def test_every_object_is_judged_and_one_that_is_not_found_is_empty():
    truth = blobs(3)
    found = np.where(truth == 2, 0, truth)
    table = frame(found, truth, 3, "here")
    assert table.tolist() == [[1, 1], [0, 0], [1, 1]]
    gone = np.where(truth == 3, 0, truth)
    assert frame(gone, gone, 3, "here")[2].tolist() == [1, 1]


def test_void_is_background_and_does_not_count_as_an_object():
    truth = blobs(3)
    with_void = truth.copy()
    with_void[truth == 0] = 255
    assert objects(with_void) == objects(truth) == 3
    assert objects(np.full((4, 4), 255)) == 0
    assert (frame(truth, with_void, 3, "") == frame(truth, truth, 3, "")).all()


def test_labels_that_the_sequence_does_not_have_and_other_sizes_are_errors():
    truth = blobs(3)
    with pytest.raises(DataError, match="here has label 3, but the sequence has 2 objects"):
        frame(truth, truth, 2, "here")
    with pytest.raises(DataError, match="here: the found and the true mask are 61×39 and 61×40"):
        frame(truth[1:], truth, 3, "here")


def test_recall_counts_frames_above_a_half_and_decay_compares_overlapping_quarters():
    values = np.array([0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.6, 0.2, 0.1])
    found = statistics(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.recall == pytest.approx(4 / 9)
    # Nine frames: quarters of frames 1-3 and 7-9, each of which shares a frame with its neighbor.
    assert found.decay == pytest.approx(values[:3].mean() - values[6:].mean())
    assert statistics(values[:1]) == Statistics(0.9, 1.0, 0.0)
    many = np.linspace(1, 0, 401)  # frames beyond what a byte counts
    assert statistics(many).decay == pytest.approx(0.75)
    with pytest.raises(DataError, match="no frame is left"):
        statistics(values[:0])


def test_the_mean_is_over_objects_and_not_over_sequences_or_frames():
    one = np.full((5, 1, 2), 0.9)
    two = np.stack([np.full((2, 2), 0.3), np.full((2, 2), 0.6)], axis=1)
    two[..., 1] = 0.0
    found = summary({"one": one, "two": two})
    assert found["j/mean"] == pytest.approx((0.9 + 0.3 + 0.6) / 3)
    assert found["f/mean"] == pytest.approx(0.3)
    assert found["jf/mean"] == pytest.approx((found["j/mean"] + found["f/mean"]) / 2)
    assert found["j/recall"] == pytest.approx(2 / 3)
    assert found["sequences/two/j/mean"] == pytest.approx(0.45)
    assert found["sequences/one/jf/mean"] == pytest.approx(0.9)
