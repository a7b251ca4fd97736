"""equi-transfer: an encoder, other data, and what stands in the manifest afterward."""

import forked
import pytest
import torch
from asking import ask, write
from discs import make
from equitools.stages import transfer

from equitools import backbones, evals, manifest
from equitools.backbones import checkpoint
from equitools.core.errors import DataError, EquiError
from equitools.report.verify import verified


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The manifest of a tiny ViT, as equi-pretrain would print it, without shards."""
    folder = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    args = {"depth": 1, "embed_dim": 12, "patch_size": 8}
    encoder = backbones.create({"name": "vit_mini", "args": args})
    files = {"encoder": checkpoint.save_encoder(folder / "run", encoder)}
    recipe = {"backbone": encoder.settings}
    document = {"equitools": 1, "kind": "checkpoint", "recipe": recipe, "files": files}
    document["scores"] = {"probe/knn/all/k20/top1": 50.0}
    return write(document, folder / "checkpoint.yaml")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make(tmp_path_factory.mktemp("pictures"))


def test_every_evaluation_has_data_and_a_schema():
    for name, evaluation in evals.TRANSFER.items():
        assert evaluation.data is not None
        assert transfer.resolve({"eval": name})["eval"] == name


def test_in_a_pipe_it_writes_masks_scores_and_how_they_were_made(chain, pictures, tmp_path):
    words = ["saliency", f"data={pictures}", "limit=2", "-o", "sal"]
    done = forked.run("transfer", *words, cwd=tmp_path, stdin=chain)
    assert done.returncode == 0, done.stderr
    (found,) = manifest.load(done.stdout, "stdout")
    for way in ("", "bilateral/", "center/"):
        assert 0 <= found["scores"][f"transfer/saliency/{way}iou"] <= 100
    assert found["scores"]["probe/knn/all/k20/top1"] == 50.0
    record = found["history"][-1]
    assert record["stage"] == "transfer"
    assert record["test_samples"] == 2
    assert "TokenCut" in record["method"]
    assert found["transfer"]["tau"] == 0.2
    masks = {path.name for path in (tmp_path / "sal" / "masks").glob("*.png")}
    assert len(masks) == 2
    assert masks == {path.name for path in (tmp_path / "sal" / "overlays").glob("*.png")}
    assert (tmp_path / "sal" / "manifest.yaml").exists()


def test_asked_again_it_says_so_and_other_pictures_are_another_run(chain, pictures, tmp_path):
    words = [chain, "saliency", f"data={pictures}", "bilateral=false"]
    first = ask(transfer.PROGRAM, *words, out=tmp_path)
    assert ask(transfer.PROGRAM, *words, "workers=0", out=tmp_path) == first
    moved = make(tmp_path / "elsewhere")
    again = ask(transfer.PROGRAM, *words[:2], f"data={moved}", words[3], out=tmp_path)
    assert again == first, "the same pictures, wherever they lie"
    fewer = ask(transfer.PROGRAM, *words, "limit=1", out=tmp_path / "fewer")
    assert fewer["history"][-1]["id"] != first["history"][-1]["id"]


def test_another_encoder_leaves_nothing_of_the_first(chain, pictures, tmp_path):
    words = ["saliency", f"data={pictures}", "bilateral=false", "limit=1"]
    named = ask(transfer.PROGRAM, *words, "encoder=random:resnet_mini", out=tmp_path / "cnn")
    assert named["history"][-1]["features"] == "map of the last stage"
    assert named["kind"] == "scores"
    random = ask(transfer.PROGRAM, chain, *words, "encoder=random", out=tmp_path / "random")
    assert "encoder" not in random["files"]
    assert not any(key.startswith("probe/") for key in random["scores"])
    folder = manifest.load_file(chain)[0]["files"]["encoder"]["path"].rpartition("/")[0]
    mine = ask(transfer.PROGRAM, *words, f"encoder={folder}", out=tmp_path / "mine")
    whole = ask(transfer.PROGRAM, chain, *words, out=tmp_path / "whole")
    assert mine["history"][-1]["weights"] == whole["history"][-1]["weights"]
    assert mine["scores"].items() <= whole["scores"].items()
    assert {"transfer.masks", "transfer.overlays"} <= whole["files"].keys()
    assert verified([whole])[1] == []
    next((tmp_path / "whole" / "masks").glob("*.png")).write_bytes(b"another")
    assert "transfer.masks has changed" in verified([whole])[1][0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no evaluation is asked for"),
        (["eval=salience"], 2, "did you mean 'saliency'"),
        (["saliency"], 2, "data=FOLDER"),
        (["saliency", "data=/nowhere"], 3, "/nowhere is no folder"),
        (["saliency", "data=/nowhere", "tua=0.3"], 2, "did you mean 'tau'"),
        (["saliency", "data=/nowhere", "limit=0"], 2, "limit is 0"),
        (["saliency", "data=/nowhere", "tau=2"], 2, "tau is 2; it is a cosine"),
        (["finetune", "data=/nowhere", "epochs=0"], 2, "epochs is at least 1"),
        (["finetune", "data=/nowhere", "batch_size=0"], 2, "batch_size is at least 1"),
        (["finetune", "data=/nowhere", "drop_path=2"], 2, "drop_path is 2"),
        (["finetune", "data=/nowhere", "recipe=modern", "mixup=-1"], 2, "mixup is -1"),
        (["semi", "data=/nowhere", "fraction=2"], 2, "transfer.fraction is 2"),
    ],
)
def test_wrong_words_are_refused(chain, words, code, said, tmp_path):
    with pytest.raises(EquiError) as refused:
        ask(transfer.PROGRAM, chain, *words, out=tmp_path / "out")
    assert refused.value.code == code
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_without_an_encoder_it_says_what_to_pipe_in(pictures, tmp_path):
    with pytest.raises(DataError, match="equi-pretrain"):
        ask(transfer.PROGRAM, "saliency", f"data={pictures}", out=tmp_path / "out")
