"""Every benchmark in turn, and one Markdown table of what they measured.

    python tests/bench/performance.py [FOLDER of JPEGs] > performance.md

A script prints `row | quantity | peer | ours | theirs | unit | ratio | aim | memory` lines, whose
ratio is above 1 where ours is better. A ratio below its aim is called missed, and by how much.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
TITLES = ("Quantity", "Peer", "Ours", "Peer's", "Unit", "Ratio", "Aim", "Memory", "Verdict")
# These read a folder of photos when one is given.
ON_PHOTOS = ("bench_augment.py", "bench_features.py", "bench_loader.py", "bench_tokencut.py")


def cells(line: str) -> list[str]:
    """The columns of a row line, with its verdict."""
    found = [cell.strip() for cell in line.split("|")][1:]
    return [*found, verdict(found[5], found[6])]


def verdict(ratio: str, aim: str) -> str:
    """met, missed and by how much, or nothing where no aim was set."""
    if aim == "-":
        return ""
    short = 1 - float(ratio) / float(aim)
    return "met" if short <= 0 else f"missed by {100 * short:.0f} %"


def lines_of(script: Path, photos: list[str]) -> list[str]:
    """What a benchmark prints, passed on to people as it comes."""
    words = photos if script.name in ON_PHOTOS else []
    print(f"== {script.name}", file=sys.stderr, flush=True)
    command = [sys.executable, "-u", str(script), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = []
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            found.append(line)
    if process.returncode:
        sys.exit(f"{script.name} ended with code {process.returncode}")
    return found


def processor() -> str:
    """The processor's name, where Linux says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    lines = []
    for script in sorted(HERE.glob("bench_*.py")):
        lines += lines_of(script, sys.argv[1:2])
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow"))
    print(f"{processor()}; Python {platform.python_version()}, {packages}\n")
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    for line in lines:
        if line.startswith("row |"):
            print(f"| {' | '.join(cells(line))} |")
    skipped = [line for line in lines if line.startswith("skip |")]
    print("".join(f"\nNot run: {line[len('skip |') :].strip()}" for line in skipped))


if __name__ == "__main__":
    main()
