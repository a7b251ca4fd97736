"""What is drawn for a sample and for a batch: numbers only, no picture.

A sample's numbers are a function of (seed, epoch, sample key, view) alone, the grids of a portion
one of (seed, step, view).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from equitools.augment import grid, rng
from equitools.augment.engines import Parameters
from equitools.augment.operations import crop
from equitools.augment.views import groups, layout
from equitools.augment.views.layout import Part, ViewPlan
from equitools.augment.views.settings import OF_GROUPS, knobs_of


class Draws:
    """The random numbers of resolved `views`.

    views lists what is made of a sample, parts says which views are worked on together, and order
    how the crops of a sample follow one another when it is inside or outside the portion. grids
    are the groups with `portion` by name, and portion their share of the batch, or None; a share of
    1 leaves no sample for the views that they replace, and those parts out.
    """

    def __init__(self, resolved: dict[str, Any], operations: dict[str, Any]) -> None:
        self.settings, self.operations = resolved, operations
        given = {k: v for k, v in resolved.items() if isinstance(v, dict) and k not in operations}
        self.views = [
            ViewPlan(name, group["size"], i, groups.replaced(group))
            for name, group in given.items()
            for i in range(group["count"])
        ]
        self.knobs = [self._knobs(given[v.group], v) for v in self.views]
        self.grids = {name: group for name, group in given.items() if "portion" in group}
        self.portion = next((group["portion"] for group in self.grids.values()), None)
        self.parts = {
            name: part
            for name, part in layout.parts(self.views).items()
            if part.inside is not False or self.portion != 1
        }
        self.order = {inside: layout.order(self.parts, inside) for inside in (False, True)}
        of_views = [given[view.group] for view in self.views]
        self._scale = [group["crop"] for group in of_views]
        self._ratio = [group["ratio"] for group in of_views]

    def _knobs(self, group: dict[str, Any], view: ViewPlan) -> dict[str, dict[str, Any]]:
        """Keyword arguments of each operation's draw for one view; none where it never acts."""

        def own(value: Any) -> Any:
            return value[view.index] if isinstance(value, list) else value

        found = {
            "flip": {"p": group["flip"]},
            "jitter": group["jitter"],
            "gray": {"p": group["gray"]},
            "blur": {"p": own(group["blur"]), "sigma": group["sigma"]},
            "solarize": {"p": own(group["solarize"])},
        }
        for name, operation in self.operations.items():
            if name not in OF_GROUPS and self.settings[name] is not None:
                found[name] = knobs_of(operation, self.settings[name])
        return found

    def sample(
        self, height: int, width: int, key: str, seed: int, epoch: int, inside: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The uniforms of a sample's views, and in pixels the windows of those that it has."""
        uniforms = rng.uniforms(seed, epoch, key, rows=len(self.views))
        if self.portion is None:
            places = {"scale": self._scale, "ratio": self._ratio}
            return uniforms, crop.place(uniforms[:, crop.COLUMNS], height, width, **places)
        chosen = self.order[inside].views
        places = {
            "scale": [self._scale[v] for v in chosen],
            "ratio": [self._ratio[v] for v in chosen],
        }
        windows = np.zeros((len(self.views), 4), np.int32)
        windows[chosen] = crop.place(uniforms[chosen, crop.COLUMNS], height, width, **places)
        whole = {name for name, group in self.grids.items() if group["whole"]}
        windows[[view.group in whole for view in self.views]] = (0, 0, height, width)
        return uniforms, windows

    def batch(
        self,
        uniforms: np.ndarray,
        windows: np.ndarray,
        inside: Sequence[bool],
        seed: int,
        step: int,
    ) -> dict[str, dict[str, Any]]:
        """Each part's `parameters`; its `rows`, and the shapes of its `grid`, where it has them.

        uniforms v b WIDTH, windows v b 4 in fractions of the picture; inside: b, in the portion?
        """
        return {
            name: self._part(part, uniforms, windows, inside, seed, step)
            for name, part in self.parts.items()
        }

    def _part(
        self,
        part: Part,
        uniforms: np.ndarray,
        windows: np.ndarray,
        inside: Sequence[bool],
        seed: int,
        step: int,
    ) -> dict[str, Any]:
        if part.inside is None:
            return {"parameters": self._parameters(part, uniforms, windows)}
        rows = part.rows(inside)
        uniforms, windows = uniforms[:, rows], windows[:, rows]
        parameters = self._parameters(part, uniforms, windows)
        found = {"rows": torch.tensor(rows, dtype=torch.int64), "parameters": parameters}
        if part.inside:
            group = self.of(part)
            shapes = self._shapes(part, seed, step)
            moves = [grid.moves(uniforms[view][:, grid.OF_SAMPLES]) for view in part.members]
            if group["complement"]:
                moves[1::2] = [1 - one for one in moves[: len(moves) // 2 * 2 : 2]]
            parameters["grid"] = torch.cat(list(map(grid.parameters, moves, shapes)))
            found["grid"] = torch.tensor(shapes)
        return found

    def of(self, part: Part) -> dict[str, Any]:
        """The group whose views are a part inside the portion."""
        return self.grids[self.views[part.members[0]].group]

    def _shapes(self, part: Part, seed: int, step: int) -> list[grid.Shape]:
        """The grids of a part's views in a step."""
        group, views = self.of(part), sum(view.replaces is None for view in self.views)
        knobs = {"area": group["area"], "aspect": group["aspect"]}
        cells = [group["size"] / group["patch"]] * len(part.members)
        return grid.shapes(seed, step, cells, first=part.members[0] - views, **knobs)

    def _parameters(self, part: Part, uniforms: np.ndarray, windows: np.ndarray) -> Parameters:
        """Parameters of every operation, view by view, float64: the identity where it is off."""
        crops = [windows[part.source(view, "crop")] for view in part.members]
        found = {"crop": torch.from_numpy(np.concatenate(crops))}
        for name, operation in self.operations.items():
            if name == "crop":
                continue
            rows = [
                operation.draw(
                    uniforms[part.source(view, name)][:, operation.COLUMNS],
                    **self.knobs[view][name],
                )
                if name in self.knobs[view] and name in self.settings["order"]
                else np.tile(np.array(operation.IDENTITY), (uniforms.shape[1], 1))
                for view in part.members
            ]
            found[name] = torch.from_numpy(np.concatenate(rows))
        return found
