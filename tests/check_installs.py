"""Check that the requirements have wheels for each Python and system, and print a table.

    pip install uv==0.13.9 && python tests/check_installs.py

Needs the package registry. Exit code 1 if something cannot be installed. uv resolves for another
system; pip would evaluate markers such as `python_version < "3.14"` for the running Python.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product, repeat
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
SYSTEMS = {  # uv's names
    "Linux x86": "x86_64-manylinux_2_28",
    "Linux Arm": "aarch64-manylinux_2_28",
    "macOS 14, Apple Silicon": "aarch64-apple-darwin",
    "Windows": "x86_64-pc-windows-msvc",
}
FILES = ["requirements.txt", "tests/requirements.txt"]
ONLY_SOURCES = ["literalai", "syncer"]  # pure Python, needed by Chainlit; they build everywhere


def resolve(python: str, system: str, files: list[str]) -> tuple[int, str]:
    """Return how many packages the files install there, and the error if they cannot."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--quiet", *files]
    command += ["--no-header", "--no-annotate", "--only-binary", ":all:"]
    for package in ONLY_SOURCES:
        command += ["--no-binary", package]
    command += ["--python-version", python, "--python-platform", SYSTEMS[system]]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # as PyTorch's wheels need
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return len(done.stdout.splitlines()), done.stderr if done.returncode else ""


def main() -> int:
    errors = []
    for files in (FILES[:1], FILES):
        print(f"\nPackages of {' and '.join(files)}:\n")
        print("| Python |", " | ".join(SYSTEMS), "|\n|---|" + "---|" * len(SYSTEMS))
        pairs = list(product(PYTHONS, SYSTEMS))
        with ThreadPoolExecutor(8) as pool:  # it mostly waits for the registry
            results = pool.map(resolve, *zip(*pairs, strict=True), repeat(files))
            found = dict(zip(pairs, results, strict=True))
        for python in PYTHONS:
            cells = [str(found[python, name][0] or "none") for name in SYSTEMS]
            print(f"| {python} |", " | ".join(cells), "|")
        errors += [f"Python {pair[0]}, {pair[1]}:\n{e}" for pair, (_, e) in found.items() if e]
    print("", *errors, sep="\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
