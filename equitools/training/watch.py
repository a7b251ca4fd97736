"""What a run looks at while it trains: losses, collapse and neighbors."""

import copy
import math
import time
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from equitools.augment import Batch
from equitools.backbones.encoder import Encoder
from equitools.core import distributed
from equitools.core.errors import NumericalError
from equitools.core.records import Features, Step
from equitools.data.shards.index import ShardIndex, open_split
from equitools.features.extract import extract
from equitools.features.neighbors import knn
from equitools.features.transform import evaluation_transform
from equitools.nn import collapse
from equitools.nn.term import Term
from equitools.training.learner import Learner
from equitools.training.length import Length
from equitools.training.optimization import Sums

Line = dict[str, Any]  # of metrics.jsonl

SENTENCES = {"I": "the invariant part", "V": "the equivariant part"}
CONSTANT = 1e-3  # spread of a representation that says nothing
VANISHED = 1e-6  # mean |z| of a representation that is no longer there
DECADES = 6.0  # how far a head's log10 Σp² falls before it counts as decayed


def describe(readings: Mapping[str, float], losses: Mapping[str, float]) -> list[str]:
    """What the readings say in words; an empty list while nothing is wrong.

    readings: `measure` and the terms' diagnostics, each name bare ("h_V") or after the name of
    its term ("dino/teacher_entropy"). losses: the terms' losses by name ("dino").
    """
    sentences = []
    for key, value in readings.items():
        owner, _, name = key.rpartition("/")
        if name == "uniform_entropy":
            sentences += _assignments(readings, losses, owner, value)
        elif name.startswith("spread_") and "min" not in name and value < CONSTANT:
            sentences.append(f"{SENTENCES[name[-1]]} is constant: channel spread {value:.1g}")
        elif name in ("z_I", "z_V") and value < VANISHED:
            sentences.append(f"{SENTENCES[name[-1]]} has vanished: mean |z| = {value:.1g}")
        elif name in ("h_I", "h_V") and value < -DECADES:
            head = "EF" if name == "h_V" else "IR"
            sentences.append(f"the {head} head has decayed: Σp² = 1e{value:.1f}")
    return sentences


def _assignments(
    readings: Mapping[str, float], losses: Mapping[str, float], owner: str, uniform: float
) -> list[str]:
    """Words for a target network whose assignments have become uniform, or all the same."""
    prefix = f"{owner}/" if owner else ""
    entropy = readings[f"{prefix}teacher_entropy"]
    choices = round(math.exp(uniform))
    loss = losses.get(owner, math.inf)
    if entropy > (1 - 1e-4) * uniform:
        if abs(loss - uniform) < 1e-4:
            return [f"uniform collapse: loss {loss:.4f} = ln {choices}"]
        return [f"uniform collapse: teacher entropy {entropy:.4f}, ln {choices} = {uniform:.4f}"]
    if readings[f"{prefix}mean_entropy"] < 1e-3 * uniform:
        return [f"collapse onto one of {choices} prototypes: every picture has the same assignment"]
    return []


def stop_if_broken(loss: Tensor, losses: dict[str, Tensor], step: int, saved: int) -> None:
    """Raise NumericalError naming the terms that are not finite, in whichever process they are.

    saved: the step of the last saved state, 0 for none.
    """
    broken = not bool(torch.isfinite(loss))
    if distributed.any_across(broken, loss.device):
        bad = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
        where = ", ".join(bad) or ("the sum of terms" if broken else "another process's loss")
        state = f"the state of step {saved} is kept" if saved else "nothing was saved before it"
        raise NumericalError(
            f"step {step + 1}: {where} is not finite; {state}."
            " A lower optimizer.lr, or precision=fp32, is what usually helps"
        )


class Watch:
    """What a run says of itself: the metrics of a step, and what is new to report.

    reported: {kind of sentence: the sentence with its step}, what was said before a resumption.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        length: Length,
        model: Learner,
        reported: dict[str, str],
        start: int,
    ) -> None:
        self.settings, self.length, self.model = settings, length, model
        self.reported, self.logged = reported, start
        self.clock, self.waited = time.perf_counter(), 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time that it was waited for is counted."""
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return batch

    def due(self, key: Literal["log_every", "watch_every"], seen: int) -> bool:
        """Is a line of losses or a look at signs of collapse due after so many steps?"""
        return seen % self.settings[key] == 0 or seen == self.length.steps

    def step(self, seen: int, rate: float, sums: Sums, record: Step) -> tuple[Line, list[str]]:
        """The metrics after so many steps, empty where none are due, and new signs of collapse.

        sums: the step's micro-batches; record: the last of them, which the terms look at.
        """
        logs, looks = self.due("log_every", seen), self.due("watch_every", seen)
        if not (logs or looks):
            return {}, []
        loss, losses = sums.means()
        line: Line = (
            {"loss": loss, "losses": losses, "lr": rate, **self._speed(seen)} if logs else {}
        )
        if not looks:
            return line, []
        line["watch"], sentences = signs_of_collapse(
            self.model.named_terms(self.settings["objective"]["name"]),
            record,
            sums.features,
            losses,
        )
        return line, self.report_new(sentences, seen)

    def _speed(self, seen: int) -> dict[str, float]:
        """Images per second and the share of the time that was waited, since the last line."""
        elapsed = time.perf_counter() - self.clock
        images = (seen - self.logged) * self.settings["batch_size"]
        speed = {"images_per_second": images / elapsed, "waited": self.waited / elapsed}
        self.clock, self.waited, self.logged = time.perf_counter(), 0.0, seen
        return speed

    def report_new(self, sentences: list[str], step: int) -> list[str]:
        """Keep what is said for the first time, with its step, and return it.

        Sentences are the same when they differ in their numbers only, which stand after the colon.
        """
        kinds = {sentence.split(":")[0]: f"step {step}: {sentence}" for sentence in sentences}
        new = {kind: text for kind, text in kinds.items() if kind not in self.reported}
        self.reported |= new
        return list(new.values())

    def neighbors_due(self, step: int) -> bool:
        """Does this step end another `knn_every` epochs, or the run?"""
        every = self.settings["knn_every"]
        if every <= 0:
            return False
        now, before = self.length.epoch(step + 1), self.length.epoch(step)
        return int(now / every) > int(before / every) or step + 1 == self.length.steps


def signs_of_collapse(
    terms: Mapping[str, Term], record: Step, features: list[Features], losses: dict[str, float]
) -> tuple[dict[str, float], list[str]]:
    """The collapse watch of one step: its readings, and in words what is wrong, if anything is."""
    signs = {
        f"{owner}/{key}": value
        for owner, term in terms.items()
        for key, value in term.diagnostics(record).items()
    }
    readings = collapse.measure(features) | _mean(distributed.everyones(signs))
    return readings, describe(readings, losses)


def _mean(readings: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each reading over the processes that have it: a portion may be elsewhere."""
    keys = dict.fromkeys(key for one in readings for key in one)
    return {key: fmean(one[key] for one in readings if key in one) for key in keys}


def nearest_neighbors(
    settings: dict[str, Any], document: dict[str, Any], index: ShardIndex, encoder: Encoder
) -> dict[str, float]:
    """20-nearest-neighbor accuracy, in percent, and effective rank, on a val split if there is one.

    At most 25,000 training and 5,000 val samples, so that ImageNet does not stop for it.
    """
    if "shards.val" not in document["files"] or (index.labels < 0).any():
        return {}
    frozen = copy.deepcopy(encoder)  # extraction freezes what it reads
    transform = evaluation_transform(frozen)
    train, val = (
        extract(frozen, split, transform=transform, device=settings["device"], limit=limit)
        for split, limit in ((index, 25_000), (open_split(document, "val"), 5_000))
    )
    scores = knn(train.features, train.labels, val.features, val.labels, ks=[20])
    return scores | {"effective_rank": collapse.effective_rank(val.features)}
