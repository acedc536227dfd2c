"""The weights file: a round trip, its format, and what is wrong with damaged ones."""

import errno
import os
import pickle
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from conftest import ROOT, TINY_CONFIG, tiny_loaders

import support.model.weights
import utils
from gpt import GPTModel, MultiHeadAttention, calc_loss_loader, train_model
from support.model.quantization import (
    Int8Attention,
    Int8Linear,
    exact_product,
    fast_offset,
    fast_product,
    pack,
)
from support.model.weights import load_model, save_weights
from support.training.data import create_dataloader
from utils import generate, stream

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def saved(tiny_model, tmp_path):
    path = tmp_path / "weights.pth"
    save_weights(tiny_model, path)
    return path


def test_round_trip(tiny_model, saved):
    loaded = load_model(saved, TINY_CONFIG)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.parameters())
    for name, tensor in tiny_model.state_dict().items():  # to the precision of 8 bits
        torch.testing.assert_close(
            loaded.state_dict()[name], tensor, rtol=1 / 16, atol=2**-10, msg=name
        )


def test_saving_a_loaded_model_changes_no_weight(saved, tmp_path):
    loaded = load_model(saved, TINY_CONFIG)
    save_weights(loaded, tmp_path / "again.pth")
    again = load_model(tmp_path / "again.pth", TINY_CONFIG)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_plain_torch_opens_the_file(saved):
    state = torch.load(saved, weights_only=True)
    GPTModel(TINY_CONFIG).load_state_dict(state, strict=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float8_e4m3fn}
    kinds = {entry.compress_type for entry in zipfile.ZipFile(saved).infolist()}
    assert kinds == {zipfile.ZIP_DEFLATED}


def test_the_same_weights_make_the_same_file(tiny_model, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2e9)  # at another time
    save_weights(tiny_model, tmp_path / "again.pth")
    assert (tmp_path / "again.pth").read_bytes() == saved.read_bytes()


def test_each_tensor_is_told_of(tiny_model, tmp_path):
    told = []
    save_weights(tiny_model, tmp_path / "w.pth", on_tensor=lambda: told.append(1))
    assert len(told) == len(tiny_model.state_dict())


def test_embeddings_of_unused_tokens_are_zeros(tiny_model, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    save_weights(tiny_model, tmp_path / "w.pth", used_ids=torch.tensor([[3, 5, 3]]))
    embeddings = load_model(tmp_path / "w.pth", TINY_CONFIG).tok_emb.weight
    assert embeddings.any(dim=1).nonzero().flatten().tolist() == [3, 5]
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, before[name])  # the model in memory is as it was


def test_half_the_memory(tiny_model, saved):
    half = load_model(saved, TINY_CONFIG, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    full = load_model(saved, TINY_CONFIG)
    ids = torch.randint(61, (3, 4))
    torch.testing.assert_close(half(ids).float(), full(ids), rtol=0.05, atol=0.02)
    for next_ids, logits in stream(half, ids, 12, 16):  # as good with a cache as without
        torch.testing.assert_close(logits, half(ids)[:, -1], rtol=0.05, atol=0.02)
        ids = torch.cat([ids, next_ids], dim=1)
    assert generate(half, ids, 20, 16, temperature=1, top_k=5).shape == (3, 36)


def test_eight_bits(tiny_model, saved):
    model = load_model(saved, TINY_CONFIG, dtype=torch.int8)
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 2 * 4 + 1  # queries, keys and values have one together
    assert {layer.weight.dtype for layer in layers} == {torch.int8}
    assert not any(isinstance(m, torch.nn.Linear) for m in model.modules())
    full = load_model(saved, TINY_CONFIG)
    ids = torch.randint(61, (3, 16))
    torch.testing.assert_close(model(ids), full(ids), rtol=0.05, atol=0.02)
    assert generate(model, ids, 20, 16, temperature=1, top_k=5).shape == (3, 36)
    with pytest.raises(ValueError, match=r"has 8-bit weights, .*: nothing saved"):
        save_weights(model, saved)


@torch.no_grad()
def test_eight_bits_of_attention():
    torch.manual_seed(0)
    att = MultiHeadAttention({**TINY_CONFIG, "qkv_bias": True}, 0)
    x = torch.randn(2, 5, 24)
    for ours, exact in zip(Int8Attention(att).qkv(x), att.qkv(x), strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_products_of_eight_bits_are_exact_everywhere(rows):
    a = torch.randint(-127, 128, (rows, 3072)).float()
    b = torch.randint(-127, 128, (100, 3072), dtype=torch.int8)
    a[0], a[0, -1], b[0] = 127, 126, 127  # the largest odd sum there can be
    scale, exact = torch.rand(100), a.long() @ b.long().T
    assert torch.equal(exact_product(a, b).long(), exact)  # what other devices use
    if fast_offset() is not None:  # this machine has a fast product
        fast = fast_product(a, b, scale, pack(b), fast_offset())
        assert torch.equal(fast, exact.float() * scale)


def test_eight_bits_are_the_same_with_other_instructions():
    code = (
        "import torch; from support.model.quantization import Int8Linear; torch.manual_seed(0); "
        "linear = torch.nn.Linear(3072, 100); linear.weight.data.abs_()\n"  # large sums
        "for rows in (1, 30): print(*Int8Linear(linear)(torch.rand(rows, 3072)).flatten().tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE,
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": most},
        ).stdout
        for most in ("ALL", "AVX512_CORE_BF16", "AVX2")
    }  # fmt: skip
    assert len(outputs) == 1


def test_eight_bits_on_another_device():
    there = Int8Linear(torch.nn.Linear(24, 5, device="meta"))  # it stands for a GPU: shapes alone
    for layer in there, Int8Linear(torch.nn.Linear(24, 5)).to("meta"):
        assert layer(torch.zeros(2, 3, 24, device="meta")).shape == (2, 3, 5)


def test_a_bad_number_does_not_become_a_good_one():
    for bad in (float("nan"), float("inf")):
        y = Int8Linear(torch.nn.Linear(24, 5))(torch.tensor([[bad, *[1.0] * 23], [1.0] * 24]))
        assert not y[0].isfinite().any()
        assert y[1].isfinite().all()
    assert torch.equal(Int8Linear(torch.nn.Linear(4, 2, bias=False))(torch.zeros(1, 4)),
                       torch.zeros(1, 2))  # fmt: skip


def test_loading_needs_no_compiler(saved):
    """Importing it would take as long as reading the file."""
    code = (
        f"import sys, utils; utils.load_model({str(saved)!r}, {TINY_CONFIG}); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_utils_hands_on_load_model():
    assert utils.load_model is support.model.weights.load_model


def test_float32_state_dicts_load_too(tiny_model, tmp_path):
    torch.save(tiny_model.state_dict(), tmp_path / "w.pth")
    ids = torch.randint(61, (1, 9))
    # Not the same bits: weights that lie in memory column by column are added up in another order.
    torch.testing.assert_close(load_model(tmp_path / "w.pth", TINY_CONFIG)(ids), tiny_model(ids))


def test_a_loaded_model_can_be_trained_on(saved):
    """As one can that got the same weights otherwise: their place in memory is another."""
    text, models = (
        torch.arange(300) * 7 % 61,
        [load_model(saved, TINY_CONFIG), GPTModel(TINY_CONFIG)],
    )
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.cfg["drop_rate"] = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train_model(model, *tiny_loaders(text, text), learning_rate=1e-3)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_failed_save_keeps_the_old_file(tiny_model, saved, monkeypatch):
    old = saved.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(OSError, match=r"No space left on device.*unchanged.*weights\.pth") as error:
        save_weights(tiny_model, saved)
    assert error.value.errno == errno.ENOSPC
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]  # nothing half-written is left


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: run pretrain\.ipynb"):
        load_model(tmp_path / "nothing.pth")


def test_other_configuration(saved):
    with pytest.raises(ValueError, match=r"another configuration: Missing .*trf_blocks\.2"):
        load_model(saved, {**TINY_CONFIG, "n_layers": 3})
    with pytest.raises(ValueError, match=r"another configuration: size mismatch .*24.*48"):
        load_model(saved, {**TINY_CONFIG, "emb_dim": 48})


@pytest.mark.parametrize("keep", [0, 1, 1000, -1000, -1])
def test_truncated_file(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read as weights"):
        load_model(saved, TINY_CONFIG)


@pytest.mark.parametrize(
    "content", [b"Everyone knew", pickle.dumps([1, 2], protocol=2), b"\x00" * 5000]
)
def test_other_files(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_model(saved, TINY_CONFIG)


class Command:
    """Unpickling one of these would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_the_file_is_refused(saved, tmp_path):
    torch.save({"tok_emb.weight": Command(tmp_path / "executed")}, saved)
    with pytest.raises(ValueError, match=r"holds code, which is never run; get it anew, or train"):
        load_model(saved, TINY_CONFIG)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 500.0])
def test_weights_that_do_not_fit_are_not_saved(tiny_model, saved, value):
    old = saved.read_bytes()
    with torch.no_grad():
        tiny_model.final_norm.scale[0] = value
    with pytest.raises(ValueError, match=r"final_norm\.scale has weights .*: nothing saved"):
        save_weights(tiny_model, saved)
    assert saved.read_bytes() == old


def test_a_trained_model_generates_the_same_after_reloading(tmp_path):
    torch.manual_seed(0)
    text = torch.arange(300) * 7 % 61
    model = GPTModel(TINY_CONFIG)
    train_model(model, *tiny_loaders(text, text, num_epochs=40), learning_rate=3e-3)
    save_weights(model, tmp_path / "w.pth")
    loader = create_dataloader(text, 16)
    before = calc_loss_loader(loader, model)
    loaded = load_model(tmp_path / "w.pth", TINY_CONFIG)
    assert before < 1
    assert calc_loss_loader(loader, loaded) == pytest.approx(before, abs=0.1)
    texts = [generate(m, text[None, :4], 12, 16) for m in (model, loaded)]
    assert torch.equal(*texts)
