"""A checkpoint gives back exactly what was put in, says what does not fit, and is read by timm."""

import json
import os

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

from equitools import backbones
from equitools.backbones import checkpoint
from equitools.core.errors import DataError
from equitools.nn import serialization
from equitools.training.checkpoint import seed_step


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return backbones.create({"name": "vit_mini", "split": 0.8})


def test_a_saved_encoder_comes_back_with_its_split(tmp_path, encoder):
    entry = checkpoint.save_encoder(tmp_path, encoder)
    again = checkpoint.load_encoder(tmp_path).eval()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(image).pooled, encoder.eval()(image).pooled)
    assert again.split == encoder.split == 76
    assert entry["path"] == str(tmp_path / "model.safetensors")


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path, encoder):
    before = os.umask(0o027)
    try:
        checkpoint.save_encoder(tmp_path, encoder)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}


def test_timm_alone_reads_what_we_save(tmp_path, encoder):
    checkpoint.save_encoder(tmp_path, encoder)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain(image), encoder.eval()(image).pooled)


def test_the_same_weights_are_the_same_bytes(tmp_path, encoder):
    one = checkpoint.save_encoder(tmp_path / "a", encoder)
    two = checkpoint.save_encoder(tmp_path / "b", encoder)
    assert one["digest"] == two["digest"]
    with safe_open(tmp_path / "a/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_missing_tensor_is_named(tmp_path, encoder):
    checkpoint.save_encoder(tmp_path, encoder)
    tensors = serialization.load_tensors(tmp_path / "model.safetensors")
    del tensors["blocks.0.attn.qkv.weight"]
    serialization.save_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(DataError, match=r"blocks\.0\.attn\.qkv\.weight"):
        checkpoint.load_encoder(tmp_path)


def test_weights_of_another_backbone_are_refused(tmp_path, encoder):
    checkpoint.save_encoder(tmp_path, encoder)
    other = backbones.create({"name": "resnet_mini"})
    (tmp_path / "config.json").write_text(json.dumps(other.config()))
    with pytest.raises(DataError, match="missing"):
        checkpoint.load_encoder(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200])
def test_a_truncated_file_is_refused_by_name(tmp_path, encoder, keep):
    checkpoint.save_encoder(tmp_path, encoder)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        checkpoint.load_encoder(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.safetensors"
    serialization.save_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    (tmp_path / "gone").mkdir()
    with pytest.raises(OSError, match="gone"):
        serialization.save_tensors(tmp_path / "gone" / "no" / "x.safetensors", {"a": torch.ones(2)})
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gone", "x.safetensors"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(kind):
    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()

    def fresh():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        knobs = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return model, kind(model.parameters(), lr=0.1, **knobs)

    model, optimizer = fresh()
    for seed in range(3):
        step(model, optimizer, seed)
    cursor, states = serialization.unpack(
        serialization.pack(
            {"step": 3},
            learner=model.state_dict(),
            optimizer=serialization.optimizer_tensors(optimizer),
        )
    )
    again, restored = fresh()
    again.load_state_dict(states["learner"])
    serialization.load_optimizer(restored, states["optimizer"])
    step(model, optimizer, 9)
    step(again, restored, 9)
    assert cursor == {"step": 3}
    assert torch.equal(model.weight, again.weight)


def test_moments_come_back_in_the_layout_of_their_parameter():
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    saved = {k: v.contiguous() for k, v in serialization.optimizer_tensors(optimizer).items()}
    serialization.load_optimizer(optimizer, saved)
    moment = optimizer.state[layer.weight]["exp_avg"]
    assert moment.stride() == layer.weight.stride()
    assert torch.equal(moment, saved["0.exp_avg"])


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**63])
def test_every_seed_can_seed_a_step(seed):
    seed_step(seed, 10**7, 7)
