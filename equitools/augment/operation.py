"""What an operation is: a module that says all there is to say of it; nothing else lists them."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor


class Operation(Protocol):
    """What a module on the menu has; with `matrix` it is geometric, `delta` compares views.

    NAMES, IDENTITY: its parameters, and their values where it does nothing. COLUMNS: the uniforms
    of a view that it reads. SCOPE: "views" is set beside the groups, for all of them; "group" is
    set by each group, and its `of_group(where, *, keys)` gives the knobs of `draw`: the keyword of
    its own name is a number, a list of one for each view, or a mapping; DEFAULTS, if it has them,
    are that keyword's in groups of some names. PLACE: in the default order. MOVES: does it move
    pixels? Then views that share a crop share its parameters. It is off where no recipe says more,
    so that it may come to the menu without changing any.
    """

    __name__: str
    COLUMNS: slice
    SCOPE: str
    PLACE: int
    MOVES: bool

    @property
    def NAMES(self) -> tuple[str, ...]: ...
    @property
    def IDENTITY(self) -> tuple[float, ...]: ...

    def draw(self, uniforms: np.ndarray, /, *args: Any, **knobs: Any) -> np.ndarray:
        """Parameters n k of uniforms n k."""

    def apply(self, image: Tensor, p: Tensor, /) -> Tensor:
        """Pictures b c h w by parameters b k."""


Operations = Sequence[Operation]
