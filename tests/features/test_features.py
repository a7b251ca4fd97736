"""Frozen features: the right pictures, the right channels, nothing moved, nothing done twice."""

import io
from dataclasses import dataclass, field

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from equitools import backbones
from equitools.backbones import checkpoint
from equitools.core.errors import DataError, UsageError
from equitools.evals.embedding.embed import arrays, pack_keys, unpack_keys, write_csv
from equitools.features import encoders
from equitools.features.extract import choose_layers, encode, extract, stream
from equitools.features.labels import require_labels
from equitools.features.table import FeatureTable, channels, part
from equitools.features.transform import Transform, evaluation_transform, keyed
from equitools.nn import serialization


@dataclass
class Pile:
    """What a split of shards offers, from random pictures of mixed sizes."""

    count: int = 10
    classes: list = field(default_factory=lambda: ["a", "b", "c"])
    digest: str = "sha256:pile"
    broken: int | None = None

    def __post_init__(self):
        self.labels = np.arange(self.count) % 3
        self.keys = [f"pile/{i:03d}" for i in range(self.count)]

    def __len__(self):
        return self.count

    def where(self, i):
        return f"sample '{self.keys[i]}'"

    def image(self, i):
        if i == self.broken:
            return b"no picture"
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 52, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        return data.getvalue()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return backbones.create({"name": "vit_mini", "split": 0.8})


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return backbones.create({"name": "resnet_mini"})


def run(encoder, pile=None, **knobs):
    transform = evaluation_transform(encoder)
    return extract(encoder, pile or Pile(), transform=transform, **{"batch_size": 4, **knobs})


# --- Parts -----------------------------------------------------------------------------------


def test_official_slicing_takes_the_last_blocks_ef_and_everything_else():
    # ViT-S: four blocks of 384, the invariant part is 307 wide (CLeVER's Table 7).
    assert len(channels(4, 384, 307, "all", "official")) == 1536
    assert channels(4, 384, 307, "ef", "official").tolist() == list(range(1459, 1536))
    assert channels(4, 384, 307, "ir", "official").tolist() == list(range(1459))


def test_slicing_per_block_takes_the_parts_of_every_block():
    assert channels(2, 5, 3, "ir", "per_block").tolist() == [0, 1, 2, 5, 6, 7]
    assert channels(2, 5, 3, "ef", "per_block").tolist() == [3, 4, 8, 9]
    assert len(channels(4, 384, 307, "ir", "per_block")) == 1228
    assert len(channels(4, 384, 307, "ef", "per_block")) == 308


@pytest.mark.parametrize("slicing", ["official", "per_block"])
def test_parts_make_up_the_whole_and_one_block_has_one_slicing(slicing):
    both = [channels(3, 10, 8, name, slicing).tolist() for name in ("ir", "ef")]
    assert sorted(both[0] + both[1]) == list(range(30))
    one = [channels(1, 10, 8, name, slicing).tolist() for name in ("ir", "ef")]
    assert one == [list(range(8)), [8, 9]]


def test_a_part_of_arange_features_is_its_channel_numbers():
    numbers = torch.arange(10.0).expand(3, 10)
    table = FeatureTable(numbers, torch.zeros(3), ["x"] * 3, 2, blocks=2, width=5, split=3)
    assert part(table, "ef", "official")[0].tolist() == [8, 9]
    assert part(table, "ef", "per_block")[0].tolist() == [3, 4, 8, 9]


def test_an_encoder_without_a_split_has_no_parts():
    assert len(channels(1, 8, None, "all", "official")) == 8
    with pytest.raises(UsageError, match="does not split"):
        channels(1, 8, None, "ir", "official")


# --- Layers ----------------------------------------------------------------------------------


def test_cls4_is_the_normed_class_token_of_each_block_oldest_first(vit):
    vit.eval()
    image = torch.randn(2, 3, 32, 32)
    found = encode(vit, image, "cls4")
    x = vit.trunk.patch_embed(image)
    x = vit.trunk.norm_pre(vit.trunk.patch_drop(vit.trunk._pos_embed(x)))
    expected = []
    for block in vit.trunk.blocks:
        x = block(x)
        expected.append(vit.trunk.norm(x)[:, 0])
    torch.testing.assert_close(found, torch.cat(expected[-4:], 1))
    torch.testing.assert_close(encode(vit, image, "last"), expected[-1])


def test_auto_is_the_default_for_a_vit_and_the_pooled_feature_for_a_cnn(vit, cnn):
    assert choose_layers(vit, "auto", "cls4") == "cls4"
    assert choose_layers(cnn, "auto", "cls4") == "last"
    with pytest.raises(UsageError, match="needs a ViT"):
        choose_layers(cnn, "cls4", "last")
    with pytest.raises(UsageError, match="auto, last"):
        choose_layers(vit, "clsfour", "last")


# --- Pictures --------------------------------------------------------------------------------


def test_the_transform_is_the_encoders_own():
    r18 = backbones.create({"name": "resnet18"})
    transform = evaluation_transform(r18)
    assert (transform.size, transform.resize) == (224, 256)
    assert transform.mean == pytest.approx((0.485, 0.456, 0.406))
    assert "bicubic" in transform.describe()
    assert evaluation_transform(r18, size=96, crop_pct=1.0).resize == 96


def picture(height, width, seed=0):
    """Smooth colors with some noise, as photos have."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    noise = generator.integers(-8, 9, smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def by_pillow(image, transform):
    """torchvision's Resize and CenterCrop of a PIL image, 3 h w."""
    mode = transforms.InterpolationMode(transform.interpolation)
    steps = [transforms.Resize(transform.resize, mode), transforms.CenterCrop(transform.size)]
    crop = transforms.Compose(steps)(Image.fromarray(image))
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (96, 96), (33, 47)])
@pytest.mark.parametrize(
    "shape",
    [
        (375, 500),
        (333, 250),
        (256, 256),
        (1, 1),
        (3, 2),
        (17, 31),
        (641, 480),
        (100, 790),
        (12, 400),
        (900, 31),
        (1, 300),
    ],
)
def test_the_crop_is_pillows_resize_and_center_crop(shape, size, resize, interpolation):
    transform = Transform(size, resize, interpolation, (0.5,) * 3, (0.5,) * 3)
    image = picture(*shape)
    ours, theirs = transform.pixels(image), by_pillow(image, transform)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    difference = (ours.float() - theirs.float()).abs()
    assert difference.mean() <= 0.05
    assert difference.max() <= 3


def test_what_lies_outside_the_crop_is_not_computed():
    transform = Transform(224, 256, "bicubic", (0.5,) * 3, (0.5,) * 3)
    line = np.random.default_rng(0).integers(0, 256, (1, 60_000, 3), dtype=np.uint8)
    assert transform.pixels(line).shape == (3, 224, 224)  # resized whole it is 12 GB


def test_a_crop_larger_than_the_resized_picture_is_refused():
    with pytest.raises(UsageError, match="224 does not fit a short side of 200"):
        Transform(224, 200, "bicubic", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UsageError, match="bicubic or bilinear"):
        Transform(224, 256, "nearest", (0.5,) * 3, (0.5,) * 3)


def test_normalizing_gives_mean_zero_and_sd_one_to_the_stated_color():
    transform = Transform(2, 2, "bicubic", (0.2, 0.4, 0.6), (0.5, 0.5, 0.5))
    color = torch.tensor([51, 102, 153], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert transform.normalized(color).abs().max() < 1e-6


def test_random_crops_depend_on_their_seed_alone():
    transform = Transform(32, 32, "bicubic", (0.5,) * 3, (0.5,) * 3)
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    seeds = [keyed(0, epoch, "key") for epoch in range(3)]
    torch.manual_seed(1)
    first = [transform.crop(image, seed) for seed in seeds]
    state = torch.random.get_rng_state()
    assert all(torch.equal(transform.crop(image, s), f) for s, f in zip(seeds, first, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first[0], first[1])


# --- Extraction ------------------------------------------------------------------------------


def test_neither_batches_nor_workers_change_features(cnn):
    whole = run(cnn, batch_size=10)
    assert whole.features.shape == (10, cnn.dim)
    assert whole.features.dtype == torch.float32
    assert whole.keys == Pile().keys
    assert whole.labels.tolist() == Pile().labels.tolist()
    for batch_size, workers in ((3, 2), (4, 0), (1, 1)):
        found = run(cnn, batch_size=batch_size, workers=workers)
        torch.testing.assert_close(found.features, whole.features)
        assert found.keys == whole.keys


def test_extraction_moves_nothing_in_the_encoder(cnn):
    cnn.train()
    before = {name: value.clone() for name, value in cnn.state_dict().items()}
    assert not run(cnn).features.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in cnn.state_dict().items())
    assert not cnn.training


def test_a_limit_is_the_same_subset_every_time(cnn):
    few = run(cnn, limit=4)
    assert few.keys == run(cnn, limit=4).keys
    rows = [Pile().keys.index(key) for key in few.keys]
    assert rows == sorted(rows)
    torch.testing.assert_close(few.features, run(cnn).features[rows])
    with pytest.raises(UsageError, match="limit"):
        run(cnn, limit=0)


def test_the_cache_is_used_for_the_same_question_only(vit, tmp_path):
    seen = []

    def ask(encoder=vit, **knobs):
        before = len(seen)
        found = run(encoder, cache=tmp_path, progress=seen.append, **knobs)
        return found, len(seen) > before

    first, worked = ask()
    assert worked
    again, worked = ask()
    assert not worked
    assert torch.equal(first.features, again.features)
    assert ask(layers="cls2")[1]
    assert ask(pile=Pile(digest="sha256:other"))[1]
    torch.manual_seed(5)
    assert ask(encoder=backbones.create({"name": "vit_mini", "split": 0.8}))[1]
    assert not ask()[1]


def test_a_picture_that_cannot_be_read_is_named(cnn):
    for workers in (0, 1):
        with pytest.raises(DataError, match="pile/007"):
            run(cnn, Pile(broken=7), workers=workers)


def test_labels_are_required_where_they_are_used():
    table = FeatureTable(torch.zeros(3, 2), torch.tensor([0, -1, 1]), ["x", "y", "z"], 2)
    with pytest.raises(DataError, match=r"1 of 3 samples of the val split .*'y'"):
        require_labels(table, "val")
    with pytest.raises(DataError, match="no samples"):
        require_labels(FeatureTable(torch.zeros(0, 2), torch.zeros(0), [], 2), "val")


def test_a_stream_without_augmentation_gives_the_cached_features(cnn):
    table = run(cnn)
    rows = list(range(10))
    order = torch.tensor([3, 1, 9, 0, 5, 2]).split(4)
    transform = evaluation_transform(cnn)
    knobs = {"transform": transform, "layers": "last"}
    plain = stream(cnn, Pile(), rows, augment=False, **knobs)
    for block, found in zip(order, plain(order, 0, 0), strict=True):
        torch.testing.assert_close(found, table.features[block])
    random = stream(cnn, Pile(), rows, **knobs)
    first, again, later = (torch.cat(list(random(order, 0, epoch))) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, later)


# --- Encoders and embeddings -----------------------------------------------------------------


def test_an_encoder_is_found_in_a_store_after_its_folder_has_moved(vit, tmp_path, monkeypatch):
    entry = checkpoint.save_encoder(tmp_path / "run", vit)
    document = {"files": {"encoder": entry}, "recipe": {"backbone": vit.settings}}
    image = torch.randn(1, 3, 32, 32)
    vit.eval()
    encoder, _ = encoders.find(document, None)
    torch.testing.assert_close(encoder.eval()(image).pooled, vit(image).pooled)
    (tmp_path / "store").mkdir()
    hexadecimal = entry["digest"].removeprefix("sha256:")
    (tmp_path / "run" / "model.safetensors").rename(tmp_path / "store" / hexadecimal)
    with pytest.raises(DataError, match="EQUITOOLS_STORE"):
        encoders.find(document, None)
    monkeypatch.setenv("EQUITOOLS_STORE", str(tmp_path / "store"))
    encoder, _ = encoders.find(document, None)
    torch.testing.assert_close(encoder.eval()(image).pooled, vit(image).pooled)
    assert encoder.split == vit.split


def test_a_checkpoint_of_another_backbone_is_refused(vit, cnn, tmp_path):
    checkpoint.save_encoder(tmp_path / "vit", vit)
    checkpoint.save_encoder(tmp_path / "cnn", cnn)
    (tmp_path / "cnn" / "model.safetensors").replace(tmp_path / "vit" / "model.safetensors")
    with pytest.raises(DataError, match="weights are not those of vit_mini"):
        encoders.find({}, str(tmp_path / "vit"))


def test_bare_weights_are_read_as_the_backbone_that_the_recipe_names(tmp_path):
    trunk = timm.create_model("resnet18", num_classes=10)
    serialization.save_tensors(tmp_path / "r18.safetensors", trunk.state_dict())
    path = str(tmp_path / "r18.safetensors")
    encoder, _ = encoders.find({"recipe": {"backbone": {"name": "resnet18"}}}, path)
    assert torch.equal(encoder.trunk.conv1.weight, trunk.conv1.weight)
    with pytest.raises(DataError, match=r"no config\.json .*backbone\.name="):
        encoders.find({}, path)
    with pytest.raises(DataError, match=r"holds no model\.safetensors"):
        encoders.find({}, str(tmp_path))


def test_random_encoders_depend_on_their_seed_and_disturb_no_other():
    document = {"recipe": {"backbone": {"name": "resnet_mini", "split": 0.8}}}
    state = torch.random.get_rng_state()
    prints = [
        encoders.fingerprint(encoders.find(document, "random", seed=seed)[0]) for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(state, torch.random.get_rng_state())
    assert encoders.find(document, "random")[0].split is not None
    with pytest.raises(UsageError, match="random:NAME"):
        encoders.find({}, "random")


def test_pixels_are_the_picture():
    encoder, _ = encoders.find({}, "pixels")
    table = extract(encoder, Pile(), transform=evaluation_transform(encoder), batch_size=4)
    assert table.features.shape == (10, 3 * 32 * 32)


def test_a_document_without_an_encoder_says_what_to_do():
    with pytest.raises(DataError, match="equi-pretrain"):
        encoders.find({}, None)


def test_embeddings_keep_keys_and_floats(tmp_path):
    keys = ["a", "n02/über"]
    assert unpack_keys(pack_keys(keys)) == keys
    table = FeatureTable(torch.randn(2, 3), torch.tensor([1, -1]), keys, 2, width=3)
    tensors = arrays(table, "all", "official", "val")
    write_csv(tmp_path / "e.csv", tensors)
    header, first, second = (tmp_path / "e.csv").read_text().splitlines()
    assert header == "split,key,label,f0,f1,f2"
    assert second.startswith("val,n02/über,-1,")
    numbers = torch.tensor([float(cell) for cell in first.split(",")[3:]])
    assert torch.equal(numbers, table.features[0])
