"""Where pictures come from: the menu of sources, a name → a listing."""

from pathlib import Path
from typing import Any

from equitools.core.errors import UsageError
from equitools.data.sources import cub, digits, folder, scenes, torchvision_sets
from equitools.data.sources.source import Source

SOURCES = "a folder, digits, scenes, cub200, torchvision:NAME, or tars"
EMBEDDED = {"in100": Path(__file__).parent / "imagenet100.txt"}


def open_source(settings: dict[str, Any], wanted: list[str] | None) -> Source:
    """The listing of whatever `source` names."""
    name, splits = settings["source"], (settings["train_split"], settings["val_split"])
    if name == "digits":
        return digits.digits(settings["size"])
    if name == "scenes":
        counts = settings["train_samples"], settings["val_samples"]
        return scenes.drawn_scenes(settings["size"], *counts, settings["seed"])
    if name == "cub200":
        return cub.cub200(settings["root"])
    if name.startswith("torchvision:"):
        root, download, args = settings["root"], settings["download"], settings["args"] or {}
        name = name.partition(":")[2]
        return torchvision_sets.torchvision_set(name, root, download, args, *splits)
    if ":" in name.partition("/")[0]:
        raise UsageError(f"no source '{name}'; it is {SOURCES}")
    return folder.folder(Path(name), wanted, *splits)
