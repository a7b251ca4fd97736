"""Metrics as JSON lines, one object a line, cut back to the resumed step; and trackers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from equitools.core.errors import UsageError
from equitools.core.files import write_atomic


class MetricsLog:
    """Append-only `metrics.jsonl`; opened at a step, it forgets what came after that step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        before = [line for line in read_lines(path) if line["step"] <= step] if step else []
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in before))
        self.file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one object; `step` is required. Non-finite numbers become strings."""
        self.file.write(json.dumps(_finite(values)) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics file; a line cut short by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line]


def _finite(value: object) -> object:
    """JSON has no NaN: say it in words."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def trackers_of(settings: dict[str, Any]) -> list[str]:
    """The trackers to log with; UsageError naming the extra when one is not installed."""
    for name in settings["trackers"] or []:
        if name not in PACKAGES:
            raise UsageError(f"no tracker '{name}'; there are {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UsageError(f"{name} is not installed: pip install 'equitools[trackers]'")
    return list(settings["trackers"] or [])


def flat(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """A nested line of metrics as `a/b: number`, for trackers."""
    numbers: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            numbers[prefix + key] = float(value)
    return numbers


def progress_fields(line: dict[str, Any]) -> dict[str, str]:
    """What the progress display takes from a line of metrics."""
    if "loss" not in line:
        return {}
    return {"loss": f"{line['loss']:.4f}", "waiting for data": f"{100 * line['waited']:.0f} %"}
