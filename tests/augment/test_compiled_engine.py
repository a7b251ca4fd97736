"""The compiled path gives what torch gives, in every order, layout and number of threads."""

import itertools
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from equitools import augment
from equitools.augment import engines, native, operations
from equitools.augment.engines import compiled, triton_program
from equitools.augment.native import pages
from equitools.augment.operations import crop

built = pytest.mark.skipif(
    native.library() is None, reason="the extension _native was not built (no C compiler?)"
)
OPERATIONS = {name: op for name, op in operations.menu().items() if op in compiled.OPERATIONS}
NATIVE = Path(augment.__file__).with_name("native")


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with noise, uint8, one view: 1 b 3 h w, channels last in memory."""
    g = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(count, 3, 4, 5, generator=g), (height, width), mode="bicubic")
    noisy = (smooth + 0.1 * torch.rand(smooth.shape, generator=g)).clamp(0, 1)
    return (noisy * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)[None]


def drawn(names: tuple[str, ...], count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Parameters of some operations, most of which act; solarizing far from where it jumps."""
    uniforms = np.random.default_rng(seed).random((count, 64))
    knobs = {"solarize": {"p": 0.5, "threshold": 0.5}, "elastic": {"alpha": 60.0, "sigma": 3.0}}
    return {
        name: torch.from_numpy(
            OPERATIONS[name].draw(uniforms[:, OPERATIONS[name].COLUMNS], **knobs.get(name, {}))
        )
        for name in names
    }


def both(crops: torch.Tensor, parameters: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Pictures by the compiled path and by torch, in [0, 1]."""
    chosen = {name: OPERATIONS[name] for name in parameters}
    knobs = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    assert compiled.can(crops[0], list(chosen.values()))
    ours = engines.carry_out(crops, parameters, chosen, **knobs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return ours, engines.carry_out(crops, parameters, chosen, **knobs)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Equal within the tolerance but where a value met the threshold of solarizing."""
    difference = (ours - theirs).abs()
    assert (difference <= tolerance).float().mean() > 0.9999
    assert difference.max() < 1e-3


@built
@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("size", [(40, 56), (17, 9), (1, 1)])
def test_each_operation_alone(name, size):
    ours, theirs = both(pictures(8, *size), drawn((name,), 8))
    assert_same(ours, theirs, 5e-5 if name == "elastic" else 1e-5)


@built
@pytest.mark.parametrize(
    "names", [("flip",), ("rotation",), ("flip", "rotation"), ("rotation", "flip")]
)
def test_flips_and_rotations_are_the_same_to_the_bit(names):
    ours, theirs = both(pictures(32, 33, 47), drawn(names, 32))
    assert torch.equal(ours, theirs)


@built
def test_flips_and_rotations_of_floats_are_the_same_as_of_bytes():
    """Behind an operation on floats they permute what is there."""
    crops, identity = (pictures(16, 24, 31), torch.tensor([operations.jitter.IDENTITY]).double())
    nearly = identity.repeat(16, 1)
    nearly[:, 0] = 1 + 1e-7  # acts, and changes no value by more than rounding
    for names in (("flip", "rotation"), ("rotation", "flip")):
        first, _ = both(crops, drawn(names, 16))
        behind, _ = both(crops, {"jitter": nearly} | drawn(names, 16))
        assert torch.allclose(first, behind, atol=1e-6)


@built
def test_jitter_in_every_order():
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float64)
    factors = torch.tensor([[1.3, 0.6, 1.5, -0.2]], dtype=torch.float64).expand(24, 4)
    ours, theirs = both(pictures(24, 20, 20), {"jitter": torch.cat((factors, orders), dim=1)})
    assert_same(ours, theirs, 1e-5)


@built
@pytest.mark.parametrize("seed", range(24))
def test_random_recipes_in_random_orders(seed):
    generator = np.random.default_rng(seed)
    names = generator.permutation(sorted(OPERATIONS))[: generator.integers(2, 8)]
    height, width = generator.integers(8, 48, 2)
    ours, theirs = both(pictures(6, height, width, seed), drawn(tuple(names), 6, seed))
    assert_same(ours, theirs, 5e-5)


@built
def test_blurs_and_hues_beyond_those_of_recipes():
    crops = pictures(3, 30, 20)
    wide = torch.tensor([[7.3], [0.1], [40.0]], dtype=torch.float64)
    assert_same(*both(crops, {"blur": wide}), 1e-5)
    turned = torch.tensor([[1, 1, 1, turns, 3, 0, 1, 2] for turns in (-0.5, 0.5, 0.9)]).double()
    assert_same(*both(crops, {"jitter": turned}), 1e-5)


@built
def test_gray_levels_and_pure_colors_keep_their_hue_path():
    levels = torch.tensor(
        [
            [0, 0, 0],
            [255, 255, 255],
            [128, 128, 128],
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [255, 255, 0],
        ],
        dtype=torch.uint8,
    )
    crops = levels.T.reshape(1, 1, 3, 1, 7).contiguous()
    turned = torch.tensor([[1, 1, 1, 0.31, 3, 0, 1, 2]], dtype=torch.float64)
    assert_same(*both(crops, {"jitter": turned}), 1e-5)


@built
def test_planes_and_channels_last_give_the_same():
    parameters = drawn(tuple(OPERATIONS), 5)
    last = pictures(5, 32, 28)
    planes = last.contiguous()
    assert planes.stride() != last.stride()
    assert torch.equal(both(last, parameters)[0], both(planes, parameters)[0])


@built
def test_threads_share_a_batch_without_a_trace():
    crops, parameters = pictures(33, 24, 24), drawn(tuple(OPERATIONS), 33)
    before, threads = both(crops, parameters)[0], torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(both(crops, parameters)[0], before)
    finally:
        torch.set_num_threads(threads)


def finish_in_a_child(queue, crops, parameters) -> None:
    torch.set_num_threads(2)
    chosen = {name: OPERATIONS[name] for name in parameters}
    made = engines.carry_out(crops, parameters, chosen, (0, 0, 0), (1, 1, 1))
    queue.put(made.double().sum().item())


@built
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_process_forked_after_threads_have_run_can_use_them():
    crops, parameters = pictures(6, 16, 16), drawn(("jitter", "blur"), 6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        before = both(crops, parameters)[0]
    finally:
        torch.set_num_threads(threads)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=finish_in_a_child, args=(queue, crops, parameters))
    child.start()
    assert queue.get(timeout=60) == pytest.approx(before.double().sum().item())
    child.join(60)
    assert child.exitcode == 0


@built
@pytest.mark.parametrize("plain", [False, True])
def test_crops_are_torchs_to_the_bit(monkeypatch, plain):
    monkeypatch.setattr(crop, "PLAIN", plain)
    generator = np.random.default_rng(0)
    for _ in range(60):
        height, width = generator.integers(1, [120, 400])
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ranges = {"scale": [(0.05, 1.0)] * 3, "ratio": [(0.5, 2)] * 3}
        windows = crop.place(generator.random((3, 24)), height, width, **ranges)
        sizes = [*generator.integers(1, 60, 2).tolist(), int(windows[2, 3])]
        ours = crop.take(image, windows, sizes)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            assert np.array_equal(ours, crop.take(image, windows, sizes))


@built
@pytest.mark.parametrize("plain", [False, True])
def test_a_part_of_a_resized_picture_is_torchs_to_the_bit(monkeypatch, plain):
    monkeypatch.setattr(crop, "PLAIN", plain)
    generator = np.random.default_rng(1)
    for turn in range(40):
        height, width, tall, wide = generator.integers(8, 150, 4).tolist()
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = int(generator.integers(1, min(tall, wide) + 1))
        top, left = (int(generator.integers(0, side - size + 1)) for side in (tall, wide))
        ours = crop.part(image, tall, wide, top, left, size, linear=turn % 2 == 1)
        resize = (torch.ops.aten._upsample_bicubic2d_aa, torch.ops.aten._upsample_bilinear2d_aa)
        given = torch.from_numpy(image).permute(2, 0, 1)[None]
        bottom, right = top + size, left + size
        theirs = resize[turn % 2](given, [bottom, right], False, tall / height, wide / width)
        assert np.array_equal(ours, theirs[0, :, top:, left:].permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match="cannot cut 9 px of 12×12"):
        crop.part(image, 12, 12, 4, 0, 9, linear=False)


@built
def test_pictures_that_are_not_rows_of_pixels_are_cropped_alike():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    windows = np.array([[3, 4, 20, 21]])
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    assert np.array_equal(crop.take(image, windows, [16]), crop.take(mirrored, windows, [16]))
    with pytest.raises(ValueError, match="cannot crop a picture of 40×30"):
        crop.take(image, np.add(windows, [0, 10, 0, 0]), [16])
    with pytest.raises(TypeError, match="h w 3 uint8"):
        crop.take(image.astype(np.float32), windows, [16])
    image.flags.writeable = False
    assert np.array_equal(crop.take(image, windows, [16]), crop.take(mirrored, windows, [16]))


def test_what_the_compiled_path_does_not_know_goes_to_torch():
    crops, jitter = pictures(2, 8, 8)[0], OPERATIONS["jitter"]
    assert not compiled.can(crops.float(), [jitter])
    assert not compiled.can(crops, [jitter, itertools])
    assert not compiled.can(crops.to("meta"), [jitter])
    assert compiled.can(crops, [jitter]) == (native.library() is not None)


def test_the_engine_has_a_name(monkeypatch):
    assert augment.engine("cuda") == ("Triton" if triton_program.available() else "torch")
    assert augment.engine("cpu") == ("torch" if native.library() is None else "C")
    monkeypatch.setattr(native, "library", lambda: None)
    assert augment.engine() == "torch"


def test_an_extension_of_other_days_is_not_called():
    (there,) = re.findall(r"#define INTERFACE (\d+)", (NATIVE / "picture.h").read_text())
    assert int(there) == native.INTERFACE


def test_every_c_file_is_built():
    listed = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for path in NATIVE.glob("*.[ch]"):
        assert f"equitools/augment/native/{path.name}" in listed


@pytest.mark.parametrize("shape", [(0, 3), (5,), (3, 3 << 19)])
def test_memory_in_large_pages_is_memory(shape):
    memory = pages.empty(shape, torch.uint8)
    assert memory.shape == torch.Size(shape)
    assert not memory.fill_(7).sub(7).any()
