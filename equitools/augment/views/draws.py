"""What is drawn for a sample and for a batch: numbers only, no picture.

A sample's numbers are a function of (seed, epoch, sample key, view) alone, the grids of a portion
one of (seed, step, view).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools.augment import grid, rng
from equitools.augment.engines import Parameters
from equitools.augment.operations import Menu, crop
from equitools.augment.views import groups, layout
from equitools.augment.views.groups import Group
from equitools.augment.views.layout import ViewBatch, ViewPlan
from equitools.augment.views.settings import groups_of, knobs_of, used

Array = np.ndarray


class Draws:
    """The random numbers of resolved `views`.

    views lists what is made of a sample, batches says which views are worked on together, and order
    how the crops of a sample follow one another when it is inside or outside the portion.
    operations are those that the settings use, in the order of carrying out. grids are the groups
    with `portion` by name, and portion their share of the batch, or None; a share of 1 leaves no
    sample for the views that they replace, and no batch.
    """

    def __init__(self, settings: dict[str, Any], menu: Menu) -> None:
        self.operations = {name: menu[name] for name in used(settings, menu)}
        given = groups_of(settings, menu)
        self.views = [
            ViewPlan(name, group["size"], i, groups.replaced(group))
            for name, group in given.items()
            for i in range(group["count"])
        ]
        shared = [name for name, one in self.operations.items() if one.SCOPE == "views"]
        of_all = {name: knobs_of(menu[name], settings[name]) for name in shared}
        self.knobs = [
            of_all | groups.draw_knobs(given[view.group], view.index, self.operations)
            for view in self.views
        ]
        self.grids = {name: group for name, group in given.items() if "portion" in group}
        self.portion = next((group["portion"] for group in self.grids.values()), None)
        self.batches = layout.batches(self.views, alone=self.portion == 1)
        self.order = {inside: layout.order(self.batches, inside) for inside in (False, True)}

    def sample(
        self, height: int, width: int, key: str, seed: int, epoch: int, inside: bool
    ) -> tuple[Array, Array]:
        """The uniforms of a sample's views, and in pixels the windows of those that it has."""
        uniforms = rng.uniforms(seed, epoch, key, rows=len(self.views))
        if self.portion is None:
            return uniforms, self._place(uniforms, self.knobs, height, width)
        chosen = self.order[inside].views
        windows = np.zeros((len(self.views), 4), np.int32)
        knobs = [self.knobs[view] for view in chosen]
        windows[chosen] = self._place(uniforms[chosen], knobs, height, width)
        whole = {name for name, group in self.grids.items() if group["whole"]}
        windows[[view.group in whole for view in self.views]] = (0, 0, height, width)
        return uniforms, windows

    @staticmethod
    def _place(uniforms: Array, knobs: list[Group], height: int, width: int) -> Array:
        scale, ratio = ([own["crop"][key] for own in knobs] for key in ("scale", "ratio"))
        return crop.place(uniforms[:, crop.COLUMNS], height, width, scale=scale, ratio=ratio)

    def batch(
        self, uniforms: Array, windows: Array, inside: Sequence[bool], seed: int, step: int
    ) -> dict[str, dict[str, Any]]:
        """Each batch's `parameters`; its `rows`, and the shapes of its `grid`, where it has them.

        uniforms v b WIDTH, windows v b 4 in fractions of the picture; inside: b, in the portion?
        """
        drawn: dict[str, dict[str, Any]] = {}
        for name, batch in self.batches.items():
            if batch.inside is None:
                drawn[name] = {"parameters": self._parameters(batch, uniforms, windows)}
                continue
            rows = batch.rows(inside)
            parameters = self._parameters(batch, uniforms[:, rows], windows[:, rows])
            drawn[name] = {"rows": torch.tensor(rows, dtype=torch.int64), "parameters": parameters}
            if batch.inside:
                shapes = self._shapes(batch, seed, step)
                parameters["grid"] = self._grid(batch, uniforms[:, rows], shapes)
                drawn[name]["grid"] = torch.tensor(shapes)
        return drawn

    def group(self, batch: ViewBatch) -> Group:
        """The group whose views are a batch inside the portion."""
        return self.grids[self.views[batch.members[0]].group]

    def _grid(self, batch: ViewBatch, uniforms: Array, shapes: list[grid.Shape]) -> Tensor:
        """The parameters of the grids of a batch's views, vb 5."""
        moves = [grid.moves(uniforms[view][:, grid.OF_SAMPLES]) for view in batch.members]
        if self.group(batch)["complement"]:
            moves[1::2] = [1 - one for one in moves[: len(moves) // 2 * 2 : 2]]
        return torch.cat(list(map(grid.parameters, moves, shapes)))

    def _shapes(self, batch: ViewBatch, seed: int, step: int) -> list[grid.Shape]:
        """The grids of a batch's views in a step."""
        group, views = self.group(batch), sum(view.replaces is None for view in self.views)
        knobs = {"area": group["area"], "aspect": group["aspect"]}
        cells = [group["size"] / group["patch"]] * len(batch.members)
        return grid.shapes(seed, step, cells, first=batch.members[0] - views, **knobs)

    def _parameters(self, batch: ViewBatch, uniforms: Array, windows: Array) -> Parameters:
        """Parameters vb k float64 of operations, view by view; the identity where one is off."""
        crops = [windows[batch.source(view, moves=True)] for view in batch.members]
        parameters = {"crop": torch.from_numpy(np.concatenate(crops))}
        for name, operation in self.operations.items():
            if name == "crop":
                continue
            rows = []
            for view in batch.members:
                own = uniforms[batch.source(view, operation.MOVES)][:, operation.COLUMNS]
                if name in self.knobs[view]:
                    rows.append(operation.draw(own, **self.knobs[view][name]))
                else:
                    rows.append(np.tile(np.array(operation.IDENTITY), (len(own), 1)))
            parameters[name] = torch.from_numpy(np.concatenate(rows))
        return parameters
