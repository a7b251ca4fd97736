"""The selective scan of VMamba over a picture, in four directions at once.

    Δ_t = softplus(delta_t + bias)
    s_t = exp(Δ_t A) s_{t-1} + Δ_t B_t x_t
    y_t = C_t s_t + D x_t                    summed over the four paths

One state per channel (Gu and Dao, 2023, "Mamba", equations 2 and 4, with the simplified step for B
of their code), along paths 0 row by row, 1 column by column, 2 and 3 the same two backwards (Liu et
al., 2024, "VMamba", section 4.2). Tensors stay in the order of the picture; a path is arithmetic.

`reference` is these lines as they stand. `cross_scan` gives the same fast: triton_kernels.py on
NVIDIA GPUs where Triton runs, torch_sweep.py elsewhere.
"""

import importlib
import importlib.util
import logging
import os
import shutil
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from equitools.backbones.selective_scan import torch_sweep

log = logging.getLogger(__name__)


def cross_scan(
    x: Tensor, delta: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """The sum of the four scans, b d h w in the type of x.

    x b d h w: shared by the directions; delta b 4 d h w: before its bias 4 d and softplus;
    A 4 d: negative; B, C b 4 h w; D 4 d. x, delta, B and C may be of any float type, and the state
    and A are in float32 all the same (float64 for float64). Gradients reach all seven, once.
    """
    types = {t.dtype for t in (x, delta, B, C)}
    if x.is_cuda and all(engine(x.device, dtype) == "Triton" for dtype in types):
        kernels = importlib.import_module("equitools.backbones.selective_scan.triton_kernels")
        return kernels.fused(x, delta, bias, A, B, C, D)
    return torch_sweep.swept(x, delta, bias, A, B, C, D)


def engine(device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """How pictures of a type are scanned on a device here: "Triton" or "torch"."""
    device = torch.device(device)
    if device.type != "cuda" or dtype == torch.float64:
        return "torch"
    return "torch" if _missing(device, dtype) else "Triton"


@cache
def _missing(device: torch.device, dtype: torch.dtype) -> str:
    """What Triton lacks on a CUDA device, said in the log once; "" where it lacks nothing."""
    here = torch.cuda.get_device_capability(device)
    needed = (8, 0) if dtype == torch.bfloat16 else (7, 0)
    reason = ""
    if here < needed:
        name = str(dtype).removeprefix("torch.")
        reason = f"{name} takes compute capability {needed[0]}.{needed[1]}, this is"
        reason += f" {here[0]}.{here[1]}"
    elif not importlib.util.find_spec("triton"):
        reason = "triton is not installed"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        reason = "Triton finds no C compiler; set CC"
    if reason:
        log.warning("VMamba's scan runs without Triton on %s, slower: %s", device, reason)
    return reason


def reference(
    x: Tensor, delta: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """What `cross_scan` computes, position by position; slow, differentiable, keeps float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias, A, D = (t.to(wide) for t in (bias, A, D))
    paths = torch.tensor([[[_path(k, *x.shape[2:])] for k in range(4)]], device=x.device)
    maps = (t.to(wide).flatten(-2) for t in (x.unsqueeze(1), delta, B.unsqueeze(2), C.unsqueeze(2)))
    along = [torch.take_along_dim(t, paths, -1).unbind(-1) for t in maps]
    state, outputs = torch.zeros_like(along[1][0]), []
    for x_t, delta_t, B_t, C_t in zip(*along, strict=True):
        step = F.softplus(delta_t + bias, threshold=100)
        state = torch.exp(step * A) * state + step * B_t * x_t
        outputs.append(C_t * state + D * x_t)
    y = torch.take_along_dim(torch.stack(outputs, -1), paths.argsort(-1), -1)
    return y.sum(1).view(x.shape).to(x.dtype)


def _path(k: int, h: int, w: int) -> list[int]:
    """The positions i w + j of direction k in the order in which it meets them."""
    rows = list(range(h * w))
    path = [i * w + j for j in range(w) for i in range(h)] if k % 2 else rows
    return path[::-1] if k >= 2 else path
