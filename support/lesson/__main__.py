"""Run the whole lesson in a terminal and show its progress: python -m support.lesson"""

from support.python_version import require_python

require_python("torch")  # the imports below fail on other versions

import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

NOTEBOOK = Path(__file__).parents[2] / "pretrain.ipynb"


class LessonClient(NotebookClient):
    """Run a notebook in its folder, with a progress bar that shows the running cell's output."""

    def __init__(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        super().__init__(notebook, kernel_name="python3", timeout=None)
        self.resources = {"metadata": {"path": path.parent}}
        self.coalesce_streams = True  # stores only the last state of a cell's progress bar
        self.bar = tqdm(total=len(notebook.cells), unit="cell", file=sys.stderr, ncols=100)
        self.on_cell_start = self._show_title

    def _show_title(self, cell: Any, cell_index: int) -> None:
        self.bar.update(cell_index + 1 - self.bar.n)
        if cell.source.startswith("## "):
            self.bar.write(cell.source.splitlines()[0].removeprefix("## "), file=sys.stderr)

    def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
        """Store a cell's output, and show its last line, such as a progress bar of its own."""
        lines = msg["content"].get("text", "").split("\n")[-1].split("\r")
        self.bar.set_postfix_str(lines[-1].strip()[:45])
        return super().output(outs, msg, display_id, cell_index)


def run_lesson(path: Path = NOTEBOOK) -> Any:
    """Run a notebook in its folder and return it with its outputs.

    Raises CellExecutionError if a cell fails.
    """
    client = LessonClient(path)
    try:
        return client.execute()
    finally:
        client.bar.close()


def main() -> None:
    print("Training and all experiments take about 8 minutes on two cores.", flush=True)
    start = time.perf_counter()
    nbformat.write(run_lesson(), NOTEBOOK)
    minutes = (time.perf_counter() - start) / 60
    print(f"Done in {minutes:.1f} minutes. The results are in {NOTEBOOK.name}.")


if __name__ == "__main__":
    main()
