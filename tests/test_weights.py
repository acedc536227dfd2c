"""Weights files: what is written, what is read, and what is refused."""

import importlib.util
import pickle
import time
import zipfile

import pytest
import torch
from conftest import TINY_CONFIG, run_python, same_weights

from gpt import GPTModel, TrainState, calc_loss_loader
from support.model.hugging_face import save_hugging_face
from support.model.quantization import Int8Linear, exact_product, fast_offset
from support.model.weights import load_model, rounded_weights, save_weights
from support.training.checkpoints import read_checkpoint, restore, save_checkpoint
from utils import generate, generate_text_simple

pytestmark = pytest.mark.usefixtures("one_thread")


# 1. Files of save_weights -------------------------------------------------------------------


def test_round_trip(tiny_model, saved, tmp_path):
    loaded = load_model(saved, TINY_CONFIG)
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())
    for name, tensor in tiny_model.state_dict().items():  # to the precision of 8 bits
        torch.testing.assert_close(
            loaded.state_dict()[name], tensor, rtol=1 / 16, atol=2**-10, msg=name
        )
    save_weights(loaded, tmp_path / "again.pth")
    assert same_weights(load_model(tmp_path / "again.pth"), loaded)
    plain = torch.load(saved, weights_only=True)  # as anyone opens it
    GPTModel(TINY_CONFIG).load_state_dict(plain, strict=True)
    assert {tensor.dtype for tensor in plain.values()} == {torch.float8_e4m3fn}
    kinds = {entry.compress_type for entry in zipfile.ZipFile(saved).infolist()}
    assert kinds == {zipfile.ZIP_DEFLATED}


def test_a_file_knows_its_configuration(saved, tmp_path):
    config = {**TINY_CONFIG, "n_heads": 2, "drop_rate": 0.3}
    save_weights(GPTModel(config), saved)
    save_checkpoint(tmp_path / "1.ckpt", GPTModel(config), TrainState(), {})
    for path in (saved, tmp_path / "1.ckpt"):
        assert load_model(path).cfg == config
        assert load_model(path, {**config, "drop_rate": 0.0}).cfg["drop_rate"] == 0
        for key, value in {"n_heads": 3, "context_length": 8, "qkv_bias": True}.items():
            problem = f"configuration: {key} {config[key]}, not {value}"
            with pytest.raises(ValueError, match=problem):
                load_model(path, {**config, key: value})


def test_same_weights_same_file(tiny_model, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2e9)  # at another time
    save_weights(tiny_model, tmp_path / "again.pth")
    assert (tmp_path / "again.pth").read_bytes() == saved.read_bytes()


def test_embeddings_of_unused_tokens_are_zeros(tiny_model, saved, tmp_path):
    weights, used_ids = rounded_weights(tiny_model), torch.tensor([[3, 5, 3]])
    save_weights(tiny_model, tmp_path / "w.pth", used_ids, weights)
    embeddings = load_model(tmp_path / "w.pth", TINY_CONFIG).tok_emb.weight
    assert embeddings.any(dim=1).nonzero().flatten().tolist() == [3, 5]
    save_weights(tiny_model, tmp_path / "w.pth", weights=weights)
    assert (tmp_path / "w.pth").read_bytes() == saved.read_bytes()  # `weights` are unchanged


def test_a_wrapped_model_is_saved_under_plain_names(tiny_model, saved, tmp_path):
    other = GPTModel(TINY_CONFIG)
    other.trf_blocks[1] = torch.compile(other.trf_blocks[1], backend="eager")
    other = torch.nn.DataParallel(torch.compile(other, backend="eager"))
    save_checkpoint(tmp_path / "1.ckpt", tiny_model, TrainState(), {})
    restore(tmp_path / "1.ckpt", read_checkpoint(tmp_path / "1.ckpt"), other, {})
    save_weights(other, tmp_path / "2.pth")
    assert (tmp_path / "2.pth").read_bytes() == saved.read_bytes()
    save_checkpoint(tmp_path / "2.ckpt", other, TrainState(), {})
    assert same_weights(load_model(tmp_path / "2.ckpt"), tiny_model)
    save_hugging_face(other, tmp_path / "2")
    assert same_weights(load_model(tmp_path / "2"), tiny_model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 500.0])
def test_weights_that_do_not_fit_are_not_saved(tiny_model, saved, value):
    old = saved.read_bytes()
    with torch.no_grad():
        tiny_model.final_norm.scale[0] = value
    with pytest.raises(ValueError, match=r"final_norm\.scale has weights .*: nothing saved"):
        save_weights(tiny_model, saved)
    assert saved.read_bytes() == old


# 2. Other files -----------------------------------------------------------------------------


def prefixed(prefix, weights, at=""):
    return {name.replace(at, at + prefix, 1): tensor for name, tensor in weights.items()}


MASKS = {f"trf_blocks.{i}.att.mask": torch.ones(16, 16).triu(1) for i in range(2)}
READABLE = {
    "plain": lambda w: w,
    "compiled, in DDP, with a compiled block": lambda w: prefixed(
        "module._orig_mod.", prefixed("_orig_mod.", w, "blocks.0.")
    ),
    "the book": lambda w: {"model_state_dict": w | MASKS, "optimizer_state_dict": {}},
    "Lightning": lambda w: {"epoch": 1, "state_dict": prefixed("model.", w)},
    "an average": lambda w: {"n_averaged": torch.tensor(2), **prefixed("module.", w)},
}


@pytest.mark.parametrize("content", READABLE.values(), ids=READABLE)
def test_weights_from_elsewhere(tiny_model, tmp_path, content):
    torch.save(content(tiny_model.state_dict()), tmp_path / "w.pth")
    assert same_weights(load_model(tmp_path / "w.pth", TINY_CONFIG), tiny_model)


@pytest.mark.skipif(not importlib.util.find_spec("llms_from_scratch"), reason="not installed")
def test_the_books_model_is_the_same(tmp_path):
    """.ci/run installs the book's package."""
    torch.manual_seed(0)
    book = importlib.import_module("llms_from_scratch.ch04").GPTModel(TINY_CONFIG).eval()
    torch.save(book.state_dict(), tmp_path / "book.pth")
    model, ids = load_model(tmp_path / "book.pth", TINY_CONFIG), torch.arange(48).view(3, 16)
    torch.testing.assert_close(model(ids), book(ids), atol=1e-4, rtol=0)
    expected = generate_text_simple(book, ids[:, :4], 12, 16)
    assert torch.equal(generate(model, ids[:, :4], 12, 16), expected)
    loader = [(ids[:2], ids[1:]), (ids[2:], ids[:1])]
    assert abs(calc_loss_loader(loader, book) - calc_loss_loader(loader, model)) < 1e-4
    masks = {name: t for name, t in book.state_dict().items() if name.endswith("att.mask")}
    book.load_state_dict({**GPTModel(TINY_CONFIG).state_dict(), **masks}, strict=True)


def weights_of(**settings):
    return GPTModel({**TINY_CONFIG, **settings}).state_dict()


C_ATTN = {"transformer.h.0.attn.c_attn.weight": torch.ones(24, 72)}
INTEGERS = {name: w.int() for name, w in weights_of().items()}
UNREADABLE = [
    (weights_of(n_layers=3), r"another configuration: Unexpected .*trf_blocks\.2"),
    (weights_of(emb_dim=48), "another configuration: size mismatch .*48.*24"),
    ({"weights": weights_of(), "config": {"n_heads": 2}}, "configuration: n_heads 2, not 3"),
    ({"weights": weights_of(), "config": {"vocab_size": -1}}, "configuration: vocab_size -1, not"),
    (INTEGERS, "another configuration: Missing .*tok_emb"),
    (GPTModel(TINY_CONFIG), r"contains code \(gpt\.GPTModel\), which is never run; use a"),
    ({"model": C_ATTN, "model_args": {}}, "is for nanoGPT's model, .*: use a"),
    (C_ATTN, "Hugging Face's format: give the folder"),
    ({"optimizer": {}, "\x1b[1m": 2}, r"no weights, but a dict with \['optimizer', '\\x1b\[1m'\]"),
    ({"a": torch.ones(1), "module.a": torch.ones(1)}, "has no weights, but a dict"),
    ({}, "has no weights, but a dict"),
    (torch.ones(2), "has no weights, but a Tensor: use a"),
]


@pytest.mark.parametrize(("content", "message"), UNREADABLE)
def test_other_contents_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth .*{message}") as caught:
        load_model(tmp_path / "w.pth", TINY_CONFIG)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"Everyone knew", pickle.dumps([1, 2]), bytes(5000), b""])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_other_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} .*is damaged"):
        load_model(tmp_path / name, TINY_CONFIG)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: run pretrain\.ipynb"):
        load_model(tmp_path / "nothing.pth")


# 3. Smaller weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "stored", "count", "error"),
    [
        (torch.bfloat16, torch.bfloat16, 2 + 2 * 13 + 3, 0.02),
        (torch.int8, torch.int8, 2 * 6 + 1, 0.02),
        ("int4", torch.uint8, 2 * 6 + 1, 0.15),
    ],
)
def test_smaller_weights(tmp_path, dtype, stored, count, error):
    path, cfg = tmp_path / "weights.pth", {**TINY_CONFIG, "emb_dim": 64, "n_heads": 4}
    save_weights(GPTModel(cfg), path)
    model, full = load_model(path, cfg, dtype=dtype), load_model(path, cfg)
    assert [t.dtype for t in model.state_dict().values()].count(stored) == count
    ids = torch.randint(61, (3, 16))
    assert (model(ids) - full(ids)).norm() < error * full(ids).norm()
    assert generate(model, ids, 20, 16, temperature=1, top_k=5).shape == (3, 36)
    assert generate(model, ids[:1], 20, 16, draft_ids=ids[0]).shape == (1, 36)
    if dtype != torch.bfloat16:
        with pytest.raises(ValueError, match=r"is quantized, .*: nothing saved"):
            save_weights(model, path)


def test_each_dtype_has_its_needs(saved, tmp_path):
    with pytest.raises(ValueError, match=r'dtype must be .* or "fastest", not torch\.float16'):
        load_model(saved, dtype=torch.float16)
    assert load_model(saved, device="meta", dtype="fastest").out_head.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="divisible by 64, not emb_dim 24 on cpu"):
        load_model(saved, TINY_CONFIG, dtype="int4")
    cfg = {**TINY_CONFIG, "emb_dim": 64, "n_heads": 4}
    save_weights(GPTModel(cfg), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"int4 needs the CPU .*, not emb_dim 64 on meta"):
        load_model(tmp_path / "wide.pth", cfg, "meta", dtype="int4")


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_products_of_eight_bits_are_exact_everywhere(rows):
    """Scales are 1, because each row's largest number is 127."""
    linear = torch.nn.Linear(3072, 100, bias=False)
    x = torch.randint(-127, 128, (rows, 3072)).float()
    linear.weight.data = torch.randint(-127, 128, (100, 3072)).float()
    x[:, 0] = linear.weight.data[:, 0] = 127
    x[0], x[0, -1], linear.weight.data[0] = 127, 126, 127  # the largest possible odd sum
    layer, exact = Int8Linear(linear), x.long() @ linear.weight.long().T
    assert torch.equal(layer(x), exact.float())  # in this CPU's product
    assert torch.equal(exact_product(x, layer.weight).long(), exact)  # in that of other devices


def test_the_fast_product_is_found_with_any_default_dtype_and_device():
    offset = fast_offset()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert fast_offset.__wrapped__() == offset
    finally:
        torch.set_default_dtype(torch.float32)


def test_eight_bits_are_the_same_with_other_instructions_but_not_the_fastest(saved, capsys):
    code = (
        "import torch; from support.model.quantization import Int8Linear; torch.manual_seed(0); "
        "linear = torch.nn.Linear(3072, 100); linear.weight.data.abs_()\n"  # large sums
        "for rows in (1, 30): print(*Int8Linear(linear)(torch.rand(rows, 3072)).flatten().tolist())"
    )
    exec(code, {})
    shown = capsys.readouterr().out
    assert run_python(code, ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16") == shown
    code += f"\nfrom utils import load_model; model = load_model({str(saved)!r}, dtype='fastest')"
    code += "\nprint(model.out_head.weight.dtype)"
    assert run_python(code, ONEDNN_MAX_CPU_ISA="AVX2") == f"{shown}torch.float32\n"


def test_numbers_that_are_not_finite_stay_so():
    for bad in (torch.nan, torch.inf):
        y = Int8Linear(torch.nn.Linear(24, 5))(torch.tensor([[bad, *[1.0] * 23], [1.0] * 24]))
        assert not y[0].isfinite().any()
        assert y[1].isfinite().all()
    y = Int8Linear(torch.nn.Linear(4, 2, bias=False))(torch.zeros(1, 4))
    assert torch.equal(y, torch.zeros(1, 2))
