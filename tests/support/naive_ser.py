"""The loss of SER by its definition."""

import itertools

import torch
from torch.nn import functional as F

from equitools.augment import geometry


def naive(term, step, negatives):
    """The loss by its definition: all tokens of both directions, one after the other."""
    portion = step.portions["grid"]
    maps = [term.projector(term.norm(f.maps[2].permute(0, 2, 3, 1))) for f in portion.online]
    means = []
    for target, source in ((0, 1), (1, 0)):
        turned = portion.views[target].matrix @ torch.linalg.inv(portion.views[source].matrix)
        grid, losses = maps[target].shape[1:3], []
        moved = []
        for image, (element,) in enumerate(geometry.elements(m[None]) for m in turned):
            cells = geometry.permute(maps[source][image].permute(2, 0, 1), element)[None]
            if cells.shape[-2:] != grid:
                cells = F.interpolate(cells, grid, mode="bicubic", align_corners=False)
            moved.append(cells[0].permute(1, 2, 0))
        q, k = (F.normalize(x, dim=-1).flatten(1, 2) for x in (maps[target], torch.stack(moved)))
        for i, j in itertools.product(*map(range, q.shape[:2])):
            rest = [
                x[o]
                for x in ((k, q) if negatives == "both" else (k,))
                for o in range(len(q))
                if o != i
            ]
            logits = torch.cat([k[i, j][None], *rest]) @ q[i, j] / term.temperature
            losses.append(logits.logsumexp(0) - logits[0])
        means.append(torch.stack(losses).mean())
    return torch.stack(means).mean()
