"""Labels are carried from frame to frame as by the whole matrix of affinities."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from equitools.core.errors import UsageError
from equitools.evals.segmentation import label_propagation


def whole(features, first, context, reach, topk, temperature):
    """The same from (hw) × (n hw) affinities, frame by frame; features d h w, labels c h w."""
    _, height, width = features[0].shape
    y, x = torch.arange(height), torch.arange(width)
    rows, columns = ((a[:, None] - a).abs() <= reach for a in (y, x))
    seen = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(height * width, -1)
    unit = [F.normalize(cells, dim=0).flatten(1) for cells in features]
    labels = [first.flatten(1)]
    for number in range(1, len(features)):
        before = range(max(1, number - context), number)
        known = [0, *before]
        affinity = [(unit[number].T @ unit[i] / temperature).exp() * seen for i in known]
        affinity = torch.cat(affinity, dim=1)
        fifth = affinity.topk(topk, dim=1).values[:, -1:]
        kept = torch.where(affinity >= fifth, affinity, 0)
        weight = kept / kept.sum(1, keepdim=True)
        labels.append(torch.cat([labels[i] for i in known], dim=1) @ weight.T)
    return [soft.view(len(first), height, width) for soft in labels[1:]]


def drawn(count, depth, height, width):
    draw = torch.Generator().manual_seed(0)
    features = [torch.randn(depth, height, width, generator=draw) for _ in range(count)]
    first = torch.rand(3, height, width, generator=draw).softmax(0)
    return features, first


@pytest.mark.parametrize(
    ("height", "width", "context", "reach", "topk"),
    [(23, 31, 7, 5, 5), (30, 17, 2, 12, 5), (12, 45, 3, 2, 1), (9, 9, 0, 1, 5), (11, 14, 1, 0, 2)],
)
def test_bands_give_what_the_whole_matrix_gives(height, width, context, reach, topk):
    features, first = drawn(11 if context == 7 else 6, 16, height, width)
    knobs = {"context": context, "neighborhood": reach, "topk": topk, "temperature": 0.1}
    found = list(label_propagation.follow(iter(features), first, **knobs))
    expected = whole(features, first, context, reach, topk, 0.1)
    assert len(found) == len(expected) == len(features) - 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_soft_labels_stay_shares_of_one():
    features, first = drawn(4, 8, 10, 26)
    for soft in label_propagation.follow(features, first):
        assert soft.min() >= 0
        torch.testing.assert_close(soft.sum(0), torch.ones(10, 26))


def test_cells_that_are_all_their_own_copy_the_mask():
    cells = torch.eye(16 * 16).view(256, 16, 16)
    labels = np.zeros((32, 32), np.uint8)
    labels[6:20, 4:14], labels[20:30, 16:28] = 1, 2
    for found in label_propagation.predict([cells] * 4, labels, (16, 16)):
        assert (found == labels).all()


def blob(number):
    """Colors of a 16 × 16 frame as one-hot features 3 h w: background and two moving blobs."""
    color = torch.zeros(16, 16, dtype=torch.long)
    color[2 + number : 6 + number, 1 + 2 * number : 5 + 2 * number] = 1
    color[11:14, 13 - number : 16 - number] = 2
    return F.one_hot(color, 3).permute(2, 0, 1).float(), color.byte().numpy()


def test_moving_blobs_are_followed_exactly_by_their_colors():
    frames = [blob(number) for number in range(5)]
    found = label_propagation.predict((cells for cells, _ in frames), frames[0][1], (16, 16))
    for ours, (_, truth) in zip(found, frames[1:], strict=True):
        assert (ours == truth).all()


def test_what_is_out_of_the_window_is_not_seen():
    near = torch.zeros(2, 1, 30)
    near[0], near[1, 0, 20] = 1, 1
    there = torch.zeros(2, 1, 30)
    there[0], there[1, 0, 5] = 1, 1
    first = label_propagation.one_hot((near[1] > 0).numpy().astype(np.uint8), (1, 30))
    for reach, share in ((14, 0.0), (15, 1.0)):
        (soft,) = label_propagation.follow([near, there], first, neighborhood=reach, topk=1)
        assert soft[1, 0, 5] == share


def test_the_first_frame_is_kept_and_old_ones_are_forgotten():
    marked = torch.eye(6).view(6, 1, 6)
    first = torch.eye(6)[[0, 0, 0, 0, 0, 1]].T.reshape(6, 1, 6)
    memory = label_propagation.Memory(marked.movedim(0, -1), 6, 2, 12)
    for number in range(6):
        memory.keep(number, marked.movedim(0, -1), first * (number + 1))
    assert sorted(memory.labels.amax((1, 2, 3)).tolist()) == [1, 5, 6]


def test_maps_are_stretched_before_the_largest_wins():
    soft = torch.full((2, 4, 4), 0.9)
    soft[1] = 0.1
    soft[1, 1:3, 1:3], soft[0, 1:3, 1:3] = 0.3, 0.7  # small beside the background everywhere
    found = label_propagation.decode(soft, (4, 4), (8, 12))
    assert found.shape == (8, 12)
    assert found.dtype == np.uint8
    assert (found[2:6, 3:9] == 1).all()
    assert found.sum() == 24
    same = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    assert (label_propagation.decode(same, (8, 8), (8, 8)) == 1).all()


def test_knobs_that_leave_nothing_are_refused():
    features, first = drawn(2, 4, 3, 3)
    for knob in ({"topk": 0}, {"context": -1}, {"neighborhood": -1}, {"temperature": 0.0}):
        with pytest.raises(UsageError, match=f"{next(iter(knob))}="):
            label_propagation.check(
                **{"context": 7, "neighborhood": 12, "topk": 5, "temperature": 0.1} | knob
            )
    (soft,) = label_propagation.follow(features, first, topk=100)
    assert soft.isfinite().all()
