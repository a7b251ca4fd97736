"""What a picture's program makes of a block of its pixels (triton_kernels.py): formulae in Triton.

The slots are walked twice: backward for where each pixel comes from, forward for its color. Only a
rotation leaves pixels that come from nowhere; they turn black in its slot, and not before.
"""

import triton
import triton.language as tl

from equitools.augment.engines import triton_program

WORDS, MEAN = tl.constexpr(triton_program.WORDS), tl.constexpr(triton_program.MEAN)
COLUMNS = triton_program.KINDS, triton_program.FACTORS, triton_program.TURN
KINDS, FACTORS, TURN = (tl.constexpr(columns.start) for columns in COLUMNS)
CONTRAST, SATURATION = map(tl.constexpr, (triton_program.CONTRAST, triton_program.SATURATION))
HUE, GRAY = tl.constexpr(triton_program.HUE), tl.constexpr(triton_program.GRAY)
SOLARIZE = tl.constexpr(triton_program.SOLARIZE)
FLIP, ROTATION = tl.constexpr(triton_program.FLIP), tl.constexpr(triton_program.ROTATION)


@triton.jit
def colors(jobs, table, reals, work, images, batch, channel, row, pixel, lanes, height, width):
    """Red, green, blue of a picture's pixels `lanes` after the slots that its job names.

    table, reals: the rows of all pictures, as integers and floats. A job's source is a place in
    `work`, or -1 for the bytes at `images`.
    """
    picture, source = tl.load(jobs), tl.load(jobs + 1)
    start, end = tl.load(jobs + 2), tl.load(jobs + 3)
    table, reals = table + picture * WORDS, reals + picture * WORDS
    x, y = lanes % width, lanes // width
    inside = lanes < height * width
    for done in range(start, end):
        kind = tl.load(table + KINDS + start + end - 1 - done)
        if kind == FLIP:
            x = width - 1 - x
        elif kind == ROTATION:
            u = _turned(table + TURN, x, y)
            y = _turned(table + TURN + 3, x, y)
            x = u
            inside = inside & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if source < 0:
        place = images + picture.to(tl.int64) * batch + y * row + x * pixel
        red = _level(place, inside)
        green = _level(place + channel, inside)
        blue = _level(place + 2 * channel, inside)
    else:
        size = height * width
        floats = work + source.to(tl.int64) * 3 * size + y * width + x
        red = tl.load(floats, mask=inside, other=0.0)
        green = tl.load(floats + size, mask=inside, other=0.0)
        blue = tl.load(floats + 2 * size, mask=inside, other=0.0)
    for slot in range(start, end):
        kind, factor = tl.load(table + KINDS + slot), tl.load(reals + FACTORS + slot)
        if kind <= SATURATION:
            rest = luma(red, green, blue) * tl.where(kind == SATURATION, 1 - factor, 0.0)
            if kind == CONTRAST:
                rest += (1 - factor) * tl.load(reals + MEAN)
            red = _unit(factor * red + rest)
            green = _unit(factor * green + rest)
            blue = _unit(factor * blue + rest)
        elif kind == HUE:
            red, green, blue = _turn_hue(red, green, blue, factor)
        elif kind == GRAY:
            red = luma(red, green, blue)
            green, blue = red, red
        elif kind == SOLARIZE:
            red = tl.where(red >= factor, 1 - red, red)
            green = tl.where(green >= factor, 1 - green, green)
            blue = tl.where(blue >= factor, 1 - blue, blue)
        elif kind == ROTATION:
            red = tl.where(inside, red, 0.0)
            green = tl.where(inside, green, 0.0)
            blue = tl.where(inside, blue, 0.0)
    return red, green, blue


@triton.jit
def luma(red, green, blue):
    """As augment/color.py weighs them."""
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _turned(turn, x, y):
    return (tl.load(turn) * x + tl.load(turn + 1) * y + tl.load(turn + 2)) >> 16


@triton.jit
def _level(place, inside):
    # Rounded as torch divides: 128 of 255 must meet a threshold of 128 / 255.
    return tl.div_rn(tl.load(place, mask=inside, other=0).to(tl.float32), 255.0)


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _turn_hue(red, green, blue, sixths):
    """jitter.py's closed form of HSV → RGB."""
    high = tl.maximum(tl.maximum(red, green), blue)
    chroma = high - tl.minimum(tl.minimum(red, green), blue)
    scale = 1 / tl.maximum(chroma, 1e-12)
    angle = tl.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    angle = tl.where(high == red, (green - blue) * scale, angle) + sixths
    angle -= 6 * tl.floor(angle / 6)
    return (
        _unit(high - chroma * _unit(2 - tl.abs(angle - 3))),
        _unit(high - chroma * _unit(tl.abs(angle - 2) - 1)),
        _unit(high - chroma * _unit(tl.abs(angle - 4) - 1)),
    )
