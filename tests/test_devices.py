"""Every public function that takes tensors, with the model on a simulated GPU."""

import subprocess
import sys

from conftest import ROOT


def test_on_a_simulated_gpu():
    """Run in a separate process, because importing the simulated GPU registers a device."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/on_simulated_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
