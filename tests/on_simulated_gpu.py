"""A model on a GPU, its inputs on the CPU: the CPU's results, and no needless waits.

The GPU is simulated (simulated_gpu.py); devices.py has the calls.
"""

import pytest
import simulated_gpu
import torch
from devices import CONFIG, TRAINING, WITH_READS, WITHOUT_READS, ids
from torch.utils._pytree import tree_leaves

from gpt import GPTModel, create_optimizer, train_step
from support.inspection.memorization import verbatim_spans
from support.model.weights import load_model, save_weights


def new_model(device):
    torch.manual_seed(1)
    return GPTModel(CONFIG).eval().to(device)


def assert_close(results, expected):
    for result, value in zip(tree_leaves(results), tree_leaves(expected), strict=True):
        if isinstance(value, torch.Tensor | float):
            torch.testing.assert_close(torch.as_tensor(result).cpu(), torch.as_tensor(value))
        else:
            assert result == value


@pytest.mark.parametrize("name", WITHOUT_READS | WITH_READS | TRAINING)
def test_gives_what_the_cpu_gives(name):
    call = (WITHOUT_READS | WITH_READS | TRAINING)[name]
    before = simulated_gpu.num_reads
    results = call(new_model("gpu"))
    reads = simulated_gpu.num_reads - before
    assert (reads == 0) == (name in WITHOUT_READS)
    assert_close(results, call(new_model("cpu")))


def test_a_training_step_waits_once():
    model = new_model("gpu")
    optimizer = create_optimizer(model, 0.1)
    before = simulated_gpu.num_reads
    train_step(model, optimizer, (ids(2), ids(2)), 1, 0.001, 0.01)
    assert simulated_gpu.num_reads == before + 1


def test_weights_are_saved_from_and_loaded_to_a_device(tmp_path):
    model = new_model("gpu")
    save_weights(model, tmp_path / "weights.pth", used_ids=ids())
    loaded = load_model(tmp_path / "weights.pth", CONFIG, "gpu")
    assert loaded(ids()).device.type == "gpu"


def test_copied_passages_of_ids_on_a_device():
    text = ids()[0]
    assert verbatim_spans(text.to("gpu"), text.to("gpu")) == verbatim_spans(text, text)


def test_the_simulated_gpu_refuses_mixed_devices():
    model = new_model("gpu")
    with pytest.raises(RuntimeError, match="embedding"):
        model.tok_emb(ids())
    with pytest.raises(RuntimeError):
        model(ids()).numpy()
