"""Run the whole lesson in a copy of the last commit, and check its final loss.

    python tests/full_notebook.py

Fails if a cell fails, or if the final training loss exceeds the README's by more than 20%. A script
and not a test, because it takes about ten minutes.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from support.lesson.__main__ import run_lesson  # noqa: E402

LOSS = re.compile(r"training loss, over all whole windows: ([\d.]+)")


def main() -> None:
    (expected,) = re.findall(r"training loss of \*\*([\d.]+)\*\*", (ROOT / "README.md").read_text())
    with tempfile.TemporaryDirectory() as copy:
        subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
        (Path(copy) / "pretrain-story-model.pth").unlink()  # the run must write its own
        start = time.perf_counter()
        notebook = run_lesson(Path(copy) / "pretrain.ipynb")
        seconds = time.perf_counter() - start
    printed = [o.get("text", "") for c in notebook.cells for o in c.get("outputs", [])]
    (loss,) = LOSS.findall("\n".join(printed))
    print(f"full notebook: {seconds:.0f} s, final training loss {loss} (README: {expected})")
    if float(loss) > 1.2 * float(expected):
        sys.exit("the final training loss is more than 20% above the README's")


if __name__ == "__main__":
    main()
