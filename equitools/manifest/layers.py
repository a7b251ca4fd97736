"""The recipe layers of `manifests/`: where they lie, and one by its name."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from equitools.core.errors import DataError, UsageError
from equitools.manifest.document import load_file
from equitools.manifest.strict_yaml import Document


def layer_root() -> Path:
    """The folder of the recipe layers: inside the installed package, else next to it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "manifests"
    return inside if inside.is_dir() else package.parent / "manifests"


def layers(folders: Iterable[str]) -> dict[str, Path]:
    """The layers of some folders by name, in the order of folders and names."""
    paths = (path for name in folders for path in sorted((layer_root() / name).glob("*.yaml")))
    return {path.stem: path for path in paths}


def layer(name: str, folders: Iterable[str]) -> Document:
    """The document of a layer. Raises UsageError with what is near, for a name that is none."""
    folders = tuple(folders)
    known = layers(folders)
    if name in known:
        documents = load_file(known[name])
        if len(documents) != 1:
            raise DataError(f"{known[name]} holds {len(documents)} documents; a layer is one")
        return documents[0]
    elsewhere = [path.parent.name for path in layer_root().glob(f"*/{name}.yaml")]
    if elsewhere:
        raise UsageError(
            f"'{name}' is a layer of {elsewhere[0]}; here come those of {', '.join(folders)}"
        )
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "--list shows the layers"
    raise UsageError(f"no layer '{name}'; {hint}")
