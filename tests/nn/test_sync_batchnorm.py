"""Batch norm over processes is batch norm over the whole batch, however the rows are shared."""

import forked
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from equitools.core import distributed
from equitools.nn import sync_batchnorm

SHAPES = {"rows": (7, 5), "maps": (7, 5, 3, 2)}
SHARES = {"even as can be": (3, 4), "all in one": (0, 7), "one row": (1, 6)}


def layers(shape):
    """A norm with every setting that ours may have, away from where it starts."""
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    torch.manual_seed(0)
    found = [kind(5), kind(5, affine=False), kind(5, momentum=None)]
    for layer in found:
        if layer.affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return found


def through(layer, x, slope):
    """The output, the input's gradient, the parameters' gradients, and the running statistics."""
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * slope).sum().backward()
    trained = [p.grad for p in layer.parameters()]
    return out.detach(), x.grad, trained, [layer.running_mean, layer.running_var]


def work(rank, folder):
    distributed.start("cpu")
    found = {}
    for kind, shape in SHAPES.items():
        for share, lengths in SHARES.items():
            x, slope = data(shape)
            for number, layer in enumerate(layers(shape)):
                sync_batchnorm.synchronize(layer)
                mine = x.split(lengths)[rank], slope.split(lengths)[rank]
                found[kind, share, number] = through(layer, *mine)
    distributed.stop()
    torch.save(found, folder / f"{rank}.pt")


def data(shape):
    draw = torch.Generator().manual_seed(1)
    # Far from zero: sums of squares would lose what the variance is made of.
    return 100 + torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    forked.ranks(work, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("number", range(3))
def test_two_processes_normalize_like_one(ranks, kind, share, number):
    one, other = (found[kind, share, number] for found in ranks)
    out, slope, trained, running = through(layers(SHAPES[kind])[number], *data(SHAPES[kind]))
    close = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(torch.cat((one[0], other[0])), out, **close)
    torch.testing.assert_close(torch.cat((one[1], other[1])), slope, **close)
    for mine, others, whole in zip(one[2], other[2], trained, strict=True):
        torch.testing.assert_close(mine + others, whole, **close)
    for mine, others, whole in zip(one[3], other[3], running, strict=True):
        assert torch.equal(mine, others)
        torch.testing.assert_close(mine, whole)


def test_one_process_has_the_norm_it_had_to_the_bit():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Flatten(), nn.BatchNorm1d(20))
    x = torch.randn(6, 3, 2, 2)
    names, plain = list(model.state_dict()), model(x)
    sync_batchnorm.synchronize(model)
    assert isinstance(model[1], sync_batchnorm.SyncBatchNorm)
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), plain)
    model.eval()
    assert torch.isfinite(model(x)).all()


def test_timms_norm_keeps_its_activation():
    layer = BatchNormAct2d(4)
    x = torch.randn(6, 4, 2, 2)
    plain = layer(x)
    sync_batchnorm.synchronize(layer)
    assert isinstance(layer, sync_batchnorm.SyncBatchNorm)
    torch.testing.assert_close(layer(x), plain)
    assert (layer(x) >= 0).all()
