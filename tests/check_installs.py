"""Check that the requirements have wheels for each Python and system.

    pip install uv==0.13.9 && python tests/check_installs.py

Needs the package registry. Exit code 1 if something cannot be installed. uv resolves for another
system; pip would evaluate markers such as `python_version < "3.14"` for the running Python.
"""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
SYSTEMS = [  # uv's names
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_28",
    "aarch64-apple-darwin",
    "x86_64-pc-windows-msvc",
]
COMMAND = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--quiet", "--no-annotate"]
COMMAND += ["requirements.txt", "tests/requirements.txt", "--only-binary", ":all:"]
COMMAND += ["--no-binary", "literalai", "--no-binary", "syncer"]  # pure Python: they build anywhere


def main() -> int:
    failed = 0
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # as PyTorch's wheels need
    for python, system in product(PYTHONS, SYSTEMS):
        target = ["--python-version", python, "--python-platform", system]
        done = subprocess.run(
            COMMAND + target, cwd=Path(__file__).parent.parent, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        print(f"Python {python}, {system}:", "fails" if done.returncode else "ok", done.stderr)
        failed += done.returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
