"""Hugging Face's format, compared with transformers and CTranslate2 themselves."""

import json
import re

import ctranslate2
import pytest
import torch
import transformers
from conftest import ROOT, TINY_CONFIG, same_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gpt import GPTModel
from support.model.hugging_face import INDEX, save_hugging_face
from support.model.quantization import quantize
from support.model.weights import load_model
from utils import generate, text_to_token_ids

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("default"),  # those of transformers and CTranslate2
]
transformers.utils.logging.disable_progress_bar()

TINY_GPT2 = {"vocab_size": 61, "n_positions": 16, "n_embd": 24, "n_head": 3, "n_layer": 2}


@torch.no_grad()
def randomized(model):
    """Return the model in eval mode, with random biases and norms, too."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def gpt2(**settings):
    torch.manual_seed(0)
    config = GPT2Config(**{**TINY_GPT2, "bos_token_id": None, "eos_token_id": None, **settings})
    return randomized(GPT2LMHeadModel(config))


def ours(**settings):
    torch.manual_seed(0)
    return randomized(GPTModel({**TINY_CONFIG, **settings}))


@torch.no_grad()
def assert_same(mine, theirs):
    """Compare the logits at each position of the context."""
    length, vocab_size = mine.cfg["context_length"], mine.cfg["vocab_size"]
    ids = torch.arange(3 * length).view(3, length) % vocab_size
    torch.testing.assert_close(mine(ids), theirs(ids).logits.float(), atol=1e-4, rtol=0)


# 1. Saving ----------------------------------------------------------------------------------


BIASES = {"qkv_bias": True, "n_heads": 1, "n_layers": 1, "drop_rate": 0.0}
SIZES = {"emb_dim": 35, "n_heads": 5, "n_layers": 3, "context_length": 20, "vocab_size": 50}


@pytest.mark.parametrize(("cfg", "dtype"), [(BIASES, torch.float32), (SIZES, torch.bfloat16)])
def test_a_saved_model_is_the_same_to_transformers_and_to_us(tmp_path, cfg, dtype):
    model, folder = ours(**cfg).to(dtype), tmp_path / "not" / "there yet"
    save_hugging_face(model, folder)
    model = model.float()
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert_same(model, theirs)
    assert load_file(folder / "model.safetensors").keys() == theirs.state_dict().keys()
    assert theirs.config.eos_token_id is None and not theirs.config.tie_word_embeddings
    back = load_model(folder)
    assert back.cfg == model.cfg and not back.training and same_weights(back, model)
    assert all(p.requires_grad for p in back.parameters())
    assert load_model(folder, dtype=torch.int8).out_head.weight.dtype == torch.int8
    with pytest.raises(ValueError, match="another configuration: n_layers"):
        load_model(folder, {"n_layers": 2})


def test_the_tokenizer_is_gpt2s(tmp_path, tokenizer, story):
    save_hugging_face(ours(vocab_size=50257, n_layers=1), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (story, "naïve 😀\n\n  \t0123 don't<|endoftext|> end", "\u2028 \x00 ﷽"):
        ids = text_to_token_ids(text, tokenizer)[0].tolist()
        assert theirs(text, verbose=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.eot_token
    assert theirs.model_max_length == 16
    # llama.cpp's converter, which is not a package, reads these.
    config = json.loads((tmp_path / "config.json").read_text())
    names = ("architectures", "n_ctx", "n_embd", "n_head", "n_layer", "eos_token_id")
    assert [config[name] for name in names] == [["GPT2LMHeadModel"], 16, 24, 3, 1, 50256]
    assert config["layer_norm_epsilon"] == 1e-5 and "quantization_config" not in config
    theirs.save_pretrained(tmp_path)  # under other file names
    load_model(tmp_path)


@pytest.mark.parametrize("size", ["tiny", pytest.param("shipped", marks=pytest.mark.long)])
def test_ctranslate2_opens_it(tmp_path, tokenizer, size):
    model, new = ours(vocab_size=50257, emb_dim=48), 8
    if size == "shipped":
        model, new = load_model(ROOT / "pretrain-story-model.pth"), 100
    prompt = "Everyone knew who the Babbingtons"
    save_hugging_face(model, tmp_path / "gpt2")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "gpt2").tokenize(prompt)
    convert = ctranslate2.converters.TransformersConverter(str(tmp_path / "gpt2"))
    convert.convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), intra_threads=1)
    (result,) = generator.generate_batch(
        [tokens], max_length=new, end_token=[], include_prompt_in_result=False
    )
    ids = text_to_token_ids(prompt, tokenizer)
    expected = generate(model, ids, new, model.cfg["context_length"])[0, ids.size(1) :].tolist()
    assert result.sequences_ids[0] == expected


# 2. Loading ---------------------------------------------------------------------------------


def to_folder(function):
    """Take the arguments of a function in two steps: all but the first, a folder; the folder."""
    return lambda *args, **settings: lambda folder: function(folder, *args, **settings)


@to_folder
def written(folder, dtype=torch.float32, shard_size="5GB", change=None, **settings):
    """Write a GPT-2 of transformers and return it. `change` gets and returns the file's tensors."""
    theirs = gpt2(**settings).to(dtype)
    theirs.save_pretrained(folder, max_shard_size=shard_size)
    assert shard_size == "5GB" or len([*folder.glob("model-*-of-*.safetensors")]) > 2
    if change:
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return theirs


def as_published(tensors):
    """Return tensors as in the published GPT-2: names without prefix, masks beside weights."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    return masks | {name.removeprefix("transformer."): tensors[name] for name in tensors}


def tied_but_stored(folder):
    written(change=lambda tensors: {**tensors, "lm_head.weight": torch.randn(61, 24)})(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def ours_with_biases_that_transformers_trained(folder):
    save_hugging_face(ours(), folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.normal_(theirs.transformer.h[1].attn.c_attn.bias)
    theirs.save_pretrained(folder)
    return theirs


WRITTEN = {
    "tied": written(),
    "not tied": written(tie_word_embeddings=False),
    "other sizes": written(n_embd=35, n_head=5, n_positions=20, vocab_size=50, resid_pdrop=0.3),
    "other words": written(
        n_inner=96, activation_function="gelu_pytorch_tanh", reorder_and_upcast_attn=True
    ),
    "float64": written(torch.float64),
    "float8": written(torch.float8_e4m3fn),
    "shards": written(tie_word_embeddings=False, shard_size="20KB"),
    "as many layers as GPT-2 XL": written(n_layer=48, n_head=25, n_embd=50),
    "as published": written(change=as_published),
    "compiled": written(change=lambda old: {f"_orig_mod.{name}": old[name] for name in old}),
    "tied but stored": tied_but_stored,
    "our own": ours_with_biases_that_transformers_trained,
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
def test_a_model_of_transformers_is_the_same_to_us(tmp_path, write):
    theirs = write(tmp_path).float()
    mine = load_model(tmp_path)
    assert_same(mine, theirs)
    assert mine.cfg["drop_rate"] == theirs.config.resid_pdrop and mine.cfg["qkv_bias"]
    assert {p.dtype for p in mine.parameters()} == {torch.float32}
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in mine.parameters())  # no views
    mine.tok_emb.weight.data.zero_()
    assert mine.out_head.weight.any()  # no longer tied


# 3. Refused ---------------------------------------------------------------------------------


@to_folder
def settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensor(name, function):
    return written(change=lambda old: old | {name: function(old.get(name)).contiguous()})


@to_folder
def content(folder, name, content):
    (folder / name).write_bytes(content)
    if name == INDEX:
        (folder / "model.safetensors").unlink()


@to_folder
def missing(folder, name):
    """Write the weights in shards, and remove a file."""
    (folder / "model.safetensors").unlink()
    written(shard_size="20KB")(folder)
    next(folder.glob(name)).unlink()


OTHER_SETTINGS = {
    "model_type": "llama", "activation_function": "relu", "layer_norm_epsilon": 1e-6,
    "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_inner": 48,
    "add_cross_attention": True, "quantization_config": {"bits": 4},
}  # fmt: skip
FC = "transformer.h.0.mlp.c_fc.weight"
NOT_FINITE = torch.tensor([torch.nan] * 24)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d"
WRONG = [
    *[(settings(**{k: v}), re.escape(f"{k} {v!r}, not one of")) for k, v in OTHER_SETTINGS.items()],
    (settings(n_head=5), "emb_dim 24 .* n_heads 5 .*is n_head there"),
    (settings(n_layer="2"), "n_layers .*'2'"),
    (settings(n_layer=10**12), r"h\.2\.ln_1\.weight is missing"),
    (settings(n_embd=3 * 10**30), r"wte\.weight is \(61, 24\), not \(61, 30+\)"),
    (settings(n_layer=1), r"that GPTModel lacks: h\.1\."),
    (settings(tie_word_embeddings=False), r"lm_head\.weight is missing"),
    (written(change=lambda old: {n: old[n] for n in old if "wte" not in n}), "wte.* is missing"),
    (tensor("score.weight", lambda _: torch.ones(2, 24)), r"that GPTModel lacks: score\.weight"),
    (tensor("wte.weight", lambda _: torch.ones(61, 24)), r"has wte\.weight twice"),
    (tensor(FC, lambda t: t.T), r"h\.0\.mlp\.c_fc\.weight is \(96, 24\), not \(24, 96\)"),
    (tensor(FC, lambda t: t.to(torch.int8)), r"h\.0\.mlp\.c_fc\.weight has torch\.int8 weights"),
    (tensor("transformer.ln_f.bias", lambda _: NOT_FINITE), r"ln_f\.bias .*not finite"),
    *[(content("config.json", c), "config.json is damaged") for c in (b"{", b"\xff\xfe", b"[]")],
    (content("config.json", b"[" * 10**6), "config.json is damaged"),
    (content("model.safetensors", LFS_POINTER), "model.safetensors is damaged, or a Git LFS"),
    (content("model.safetensors", b""), "model.safetensors is damaged"),
    *[(content(name, b'{"model": {"vocab": {"a": 0}}}'), rf"other than GPT-2's \({name}\)")
      for name in ("vocab.json", "tokenizer.json", "vocab.txt")],
    (content("tokenizer.json", b'{"model": 1}'), r"tokenizer\.json"),
    (content("vocab.json", b"{"), r"vocab\.json is damaged"),
    (content(INDEX, b"{}"), "index.json is damaged"),
    (content(INDEX, b'{"weight_map": {"a": "../b"}}'), "index.json is damaged"),
]  # fmt: skip
MISSING = [
    (missing("config.json"), "a folder without config.json"),
    (missing("model-00002-of-*"), "model-00002-of-"),
    (missing(INDEX), r"no model.saf.* in .*\(pytorch_model\.bin is not read"),
]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [*((ValueError, *one) for one in WRONG), *((FileNotFoundError, *one) for one in MISSING)],
)
def test_a_mismatch_is_named(tmp_path, kind, change, message):
    written()(tmp_path)
    change(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: torch.nn.init.constant_(model.trf_blocks[1].ff.layers[0].bias, torch.inf),
         r"trf_blocks\.1\.ff\.layers\.0\.bias .*not finite: nothing saved"),
        (quantize, "quantized, nothing saved"),
        (lambda model: model.cfg.update(n_heads=2), "another model: nothing saved"),
    ],
)  # fmt: skip
def test_a_refused_save_changes_no_file(tmp_path, change, message):
    save_hugging_face(ours(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = ours()
    change(model)
    with pytest.raises(ValueError, match=message):
        save_hugging_face(model, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
