"""Shards behind a URL: fetched once, whole, into a local folder that is read like any other.

webdataset's `gopen` opens the URL (http, https, sftp, gs, hf, ais …); `pipe:` is refused, since
nothing in a manifest is ever executed.
"""

import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from equitools.core.errors import DataError


def is_url(path: str) -> bool:
    """Is it a URL rather than a path?"""
    return "://" in path or path.startswith(("pipe:", "file:"))


def cache_folder() -> Path:
    """Where fetched shards lie: $EQUITOOLS_STORE/urls, else ~/.cache/equitools/urls."""
    store = os.environ.get("EQUITOOLS_STORE")
    return Path(store) / "urls" if store else Path.home() / ".cache" / "equitools" / "urls"


def fetch(url: str) -> Path:
    """The local copy of a shard, fetched the first time; a file:// URL is its own copy.

    Other processes that want the same shard wait for the first. Raises DataError naming the URL.
    """
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    if url.startswith("pipe:"):
        raise DataError(f"a shard cannot be a command ({url}); run it and give its output's path")
    name = unquote(urlsplit(url).path).rpartition("/")[2] or "shard.tar"
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _copy(url, path)
    return path


def _copy(url: str, path: Path) -> None:
    import webdataset

    temporary = path.with_name(f".{path.name}~")
    try:
        with webdataset.gopen(url) as stream, temporary.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        # The error of a pipe is a dump of its arguments.
        if ended := re.search(r": exit (\d+) ", reason):
            reason = f"the program that fetches it ended with exit code {ended[1]}"
        raise DataError(f"cannot fetch {url}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
