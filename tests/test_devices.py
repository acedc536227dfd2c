"""Every public function that takes tensors, with the model on a simulated GPU."""

import sys

from conftest import run


def test_on_a_simulated_gpu():
    """Run in a separate process, because importing the simulated GPU registers a device."""
    done = run([sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/on_simulated_gpu.py"])
    assert done.returncode == 0, done.stdout
