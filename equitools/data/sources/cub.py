"""CUB-200-2011 in its official layout (Wah et al., 2011), which torchvision does not read.

Four lists lie beside images/, one `id value` a line, ids from 1: images.txt, classes.txt,
image_class_labels.txt, and train_test_split.txt, whose 1 means train (5994 images, and 5794).
"""

from pathlib import Path

from equitools.core.errors import DataError, UsageError
from equitools.data.sources.source import SUFFIXES, Source, of_file, suffix

FOLDER = "CUB_200_2011"


def cub200(root: str | None) -> Source:
    """Both splits of the set at `root`, or in CUB_200_2011/ below it; labels are ids less 1.

    Raises DataError for a list that lacks or does not fit the others, for a label out of range and
    for an image that is not there, naming it.
    """
    if root is None:
        raise UsageError(f"cub200 needs root=DIR, the folder {FOLDER} or the one that holds it")
    base = Path(root) / FOLDER if (Path(root) / FOLDER).is_dir() else Path(root)
    classes = read(base, "classes.txt")
    images = read(base, "images.txt")
    labels = read(base, "image_class_labels.txt", images)
    splits = read(base, "train_test_split.txt", images)
    if list(classes) != [str(i + 1) for i in range(len(classes))]:
        raise DataError(f"{base / 'classes.txt'} does not count its classes from 1")
    source = Source("cub200", {"train": [], "val": []}, list(classes.values()))
    for number, file in images.items():
        if labels[number] not in classes:
            raise DataError(
                f"{base / 'image_class_labels.txt'}: image {number} has label {labels[number]};"
                f" labels are 1 to {len(classes)}"
            )
        if splits[number] not in ("0", "1"):
            raise DataError(f"{base / 'train_test_split.txt'}: image {number} is neither 0 nor 1")
        path = base / "images" / file
        if suffix(file) not in SUFFIXES or not path.is_file():
            raise DataError(f"{base / 'images.txt'} lists an image that is not there: {path}")
        one = of_file(file, int(labels[number]) - 1, str(path), path.stat())
        source.splits["train" if splits[number] == "1" else "val"].append(one)
    for samples in source.splits.values():
        samples.sort(key=lambda one: one.file)
    return source


def read(base: Path, name: str, wanted: dict[str, str] | None = None) -> dict[str, str]:
    """A list as {id: value}; with `wanted`, its ids are those of another list."""
    try:
        lines = (base / name).read_text().splitlines()
    except OSError as error:
        raise DataError(f"cub200: cannot read {base / name}: {error.strerror}") from error
    listed = dict(line.split(maxsplit=1) for line in lines if len(line.split()) > 1)
    odd = [number for number in listed if not number.isdigit()]
    if odd or not listed:
        raise DataError(f"{base / name} does not list `id value` lines{': ' * bool(odd)}{odd[:1]}")
    if wanted is not None and (lack := sorted(listed.keys() ^ wanted.keys(), key=int)):
        raise DataError(f"{base / name} and images.txt differ: only one has image {lack[0]}")
    return listed
