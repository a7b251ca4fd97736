"""A document in the words of a table: method, backbone, epochs, data."""

from pathlib import Path
from typing import Any

Document = dict[str, Any]


def described(document: Document) -> dict[str, str]:
    """Method, backbone, epochs and data of a document in the words of a table."""
    recipe = document.get("recipe") or {}
    return {
        "method": method(document),
        "backbone": str((recipe.get("backbone") or {}).get("name", "")),
        "epochs": epochs(document),
        "data": data(document),
    }


def named(document: Document) -> str:
    """Method, backbone and augmentation: `dino+clever vit_mini CAug`."""
    words = described(document)
    return " ".join(filter(None, (words["method"], words["backbone"], warps(document))))


def warps(document: Document) -> str:
    """BAug, CAug or CAug+, in the paper's words; empty where no recipe says."""
    views = (document.get("recipe") or {}).get("views")
    if not views or encoder(document) is not None:
        return ""
    return "BAug" if not views.get("rotation") else "CAug+" if views.get("elastic") else "CAug"


def encoder(document: Document) -> str | None:
    """Which encoder was probed when it is not the one that the recipe trained: pixels, random…"""
    stages = ("transfer", "perturb", "probe")
    named = [(document.get(stage) or {}).get("encoder") for stage in stages]
    return next(filter(None, named), None)


def method(document: Document) -> str:
    """`dino+clever`, `simsiam+ddcl w/o L_PReg`, or the encoder that was probed instead."""
    if probed := encoder(document):
        return {"pixels": "raw pixels", "random": "random encoder"}.get(probed, probed)
    recipe = document.get("recipe") or {}
    words = [(recipe.get("objective") or {}).get("name") or "?"]
    for name, knobs in (recipe.get("equivariance") or {}).items():
        bare = isinstance(knobs, dict) and knobs.get("regularization") == 0
        words.append(f"{name} w/o L_PReg" if bare else name)
    return "+".join(words)


def epochs(document: Document) -> str:
    """Passes over the data that the run made, else those that its recipe asks for."""
    runs = [r for r in document.get("history") or [] if r.get("stage") == "pretrain"]
    planned = (document.get("recipe") or {}).get("epochs")
    passes = runs[-1].get("epochs", planned) if runs else planned
    if passes is None or encoder(document):
        return ""
    return f"{round(passes, 1):g}" if passes >= 1 else f"{passes:.2g}"


def data(document: Document) -> str:
    """The source of the shards, a folder by its last name, with the class list if there is one."""
    shard = document.get("shard") or {}
    words = [Path(str(shard["source"])).name] if shard.get("source") else []
    return " ".join([*words, *([str(shard["classes"])] if shard.get("classes") else [])])
