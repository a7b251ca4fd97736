"""What all evaluations share: the menus, and what is said of an encoder in the document."""

from typing import get_args

import pytest

from equitools import evals
from equitools.evals import run
from equitools.manifest.schema import own_knobs

MENUS = (evals.PROBE, evals.PERTURB, evals.TRANSFER)
DOCUMENT = {
    "probe": {"eval": "knn"},
    "files": {"encoder": {}, "probe.heads": {}, "shards.val": {}},
    "scores": {"probe/knn/all/k20/top1": 50.0},
    "history": [{"id": "a"}, {"id": "b", "weights": "sha256:1"}],
}


@pytest.mark.parametrize("evaluation", [one for menu in MENUS for one in menu.values()])
def test_an_evaluation_says_what_it_reads(evaluation):
    assert evaluation.reads in get_args(run.Reads)
    other_data = evaluation.reads in ("labels", "masks", "videos")
    assert other_data == hasattr(evaluation.data, "open_data")
    assert bool(evaluation.limits) == (evaluation.reads in ("maps", "vectors"))
    assert set(evaluation.limits.values()) <= set(own_knobs(evaluation.evaluate))


def test_of_the_documents_own_encoder_everything_stays():
    assert run.about(DOCUMENT, None, "sha256:1") == DOCUMENT


def test_what_is_said_of_another_encoder_goes():
    document = run.about(DOCUMENT, "other", "sha256:2")
    assert "probe" not in document
    assert document["files"] == {"shards.val": {}}
    assert document["scores"] == {}


def test_an_encoder_that_was_given_before_keeps_its_scores_and_heads():
    document = run.about(DOCUMENT, "other", "sha256:1")
    assert document["scores"] == DOCUMENT["scores"]
    assert document["files"].keys() == {"probe.heads", "shards.val"}
    assert document["probe"] == {"eval": "knn"}
