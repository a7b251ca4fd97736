"""Stages asked in this process: words in, document out, errors as exceptions."""

from pathlib import Path

import forked
from equitools.stages.cli.program import Request
from equitools.stages.cli.words import gather, parse, section

from equitools import manifest
from equitools.core import files


def ask(program, *given, out=None):
    """What a stage answers to these words; its folder gets a manifest.yaml, as the frame does."""
    found = parse([str(word) for word in given], program)
    if program.check is not None:
        program.check(section(found, program))
    document, documents = gather(found, program, False)
    out = None if out is None else Path(out)
    request = Request(program, document, documents, out, False, ["test"], None)
    document = program.run(request)
    inside = manifest.dump(manifest.rebase(document, request.out))
    files.write_atomic(request.out / "manifest.yaml", inside)
    return document


def write(document, path):
    """A document as a file; returns its path."""
    files.write_atomic(path, manifest.dump(document))
    return path


def make_chain(folder):
    """Tiny shards and an untrained vit_mini with a split, as equi-pretrain would describe it;
    returns the manifest's path."""
    import torch

    from equitools import backbones
    from equitools.backbones import checkpoint

    words = ["scenes", "train_samples=60", "val_samples=30", "size=32", "-o", folder / "shards"]
    done = forked.run("shard", *words)
    assert done.returncode == 0, done.stderr
    document = manifest.load_file(folder / "shards" / "manifest.yaml")[0]
    torch.manual_seed(0)
    encoder = backbones.create({"name": "vit_mini", "split": 0.8})
    document |= {"kind": "checkpoint", "recipe": {"backbone": encoder.settings}}
    document["files"]["encoder"] = checkpoint.save_encoder(folder / "run", encoder)
    return write(document, folder / "checkpoint.yaml")
