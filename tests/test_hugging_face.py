"""Hugging Face's format, held against transformers and CTranslate2 themselves."""

import json
import random
import re
import shutil

import pytest
import torch
import transformers
from conftest import DISK, ROOT, TINY_CONFIG, damaged, save_again_and_again, tiny_loaders
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import pretrain
from gpt import GPT_CONFIG_124M, GPTModel, train_model
from support.model.hugging_face import _layout, load_hugging_face, save_hugging_face
from support.model.quantization import quantize
from support.model.weights import load_model
from support.training.checkpoints import read_checkpoint
from support.training.data import eval_loader, split_tokens
from utils import generate, text_to_token_ids

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("default"),  # transformers' and CTranslate2's are not ours to mend
]
transformers.utils.logging.disable_progress_bar()

TINY_GPT2 = {"vocab_size": 61, "n_positions": 16, "n_embd": 24, "n_head": 3, "n_layer": 2}
SIZES = {  # n_embd, n_layer, n_head of GPT-2, and how many parameters transformers counts
    "gpt2": (768, 12, 12, 124_439_808),
    "gpt2-medium": (1024, 24, 16, 354_823_168),
    "gpt2-large": (1280, 36, 20, 774_030_080),
    "gpt2-xl": (1600, 48, 25, 1_557_611_200),
}
IDS = torch.arange(48).view(4, 12)


def gpt2(**settings):
    """Return a GPT-2 of transformers with random weights, its biases and norms included."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**TINY_GPT2, "eos_token_id": None, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def ours(seed=0, **settings):
    torch.manual_seed(seed)
    model = GPTModel({**TINY_CONFIG, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@torch.no_grad()
def assert_same(mine, theirs, ids=IDS):
    """Same logits, and the same greedy continuations up to the end of the context."""
    torch.testing.assert_close(mine(ids), theirs(ids).logits.float(), atol=1e-4, rtol=0)
    new = mine.cfg["context_length"] - ids.size(1)
    written = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(generate(mine, ids, new, mine.cfg["context_length"]), written)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# 1. Out -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"qkv_bias": True},
        {"emb_dim": 35, "n_heads": 5, "n_layers": 3, "context_length": 20, "vocab_size": 50},
        {"n_heads": 1, "n_layers": 1, "drop_rate": 0.0},
    ],
)
def test_what_we_write_is_the_same_model_to_transformers_and_to_us(tmp_path, settings):
    model, folder = ours(**settings), tmp_path / "not" / "there yet"
    save_hugging_face(model, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert_same(model, theirs)
    assert not theirs.config.tie_word_embeddings
    back = load_hugging_face(folder)
    assert back.cfg == model.cfg and not back.training
    assert same_weights(back, model)
    assert all(p.requires_grad and p.is_contiguous() for p in back.parameters())


def test_float32_whatever_the_model_has(tmp_path):
    save_hugging_face(ours().bfloat16(), tmp_path)
    assert same_weights(load_hugging_face(tmp_path), ours().bfloat16().float())


def test_the_tokenizer_is_gpt2s(tmp_path, tokenizer, story):
    save_hugging_face(ours(vocab_size=50257, n_layers=1), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (story, "naïve 😀\n\n  \t0123 don't<|endoftext|> end", "\u2028 \x00 ﷽"):
        ids = text_to_token_ids(text, tokenizer)[0].tolist()
        assert theirs(text, verbose=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.eot_token
    assert theirs.model_max_length == 16
    theirs.save_pretrained(tmp_path)  # in its own way, in other files
    load_hugging_face(tmp_path)


def test_no_tokenizer_for_another_vocabulary(tmp_path):
    save_hugging_face(ours(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    "model", ["tiny", pytest.param("shipped", marks=pytest.mark.long)], ids=str
)
def test_ctranslate2_takes_it(tmp_path, tokenizer, model):
    import ctranslate2

    if model == "shipped":
        model, new = load_model(ROOT / "pretrain-story-model.pth"), 100
    else:
        model, new = ours(vocab_size=50257, emb_dim=48), 8
    prompt = "Everyone knew who the Babbingtons"
    save_hugging_face(model, tmp_path / "gpt2")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    convert = ctranslate2.converters.TransformersConverter(str(tmp_path / "gpt2"))
    convert.convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), intra_threads=1)
    (result,) = generator.generate_batch(
        [theirs.tokenize(prompt)],
        max_length=new,
        end_token=[],
        include_prompt_in_result=False,
    )
    ids = text_to_token_ids(prompt, tokenizer)
    expected = generate(model, ids, new, model.cfg["context_length"])[0, ids.size(1) :].tolist()
    assert result.sequences_ids[0] == expected


def test_what_llama_cpps_converter_reads(tmp_path):
    """The converter is no package: it was run by hand, and it asks for these."""
    save_hugging_face(ours(vocab_size=50257), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = ("architectures", "n_ctx", "n_embd", "n_head", "n_layer", "layer_norm_epsilon")
    assert [config[name] for name in names] == [["GPT2LMHeadModel"], 16, 24, 3, 2, 1e-5]


# 2. In --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": False},
        {"n_embd": 35, "n_head": 5, "n_positions": 20, "vocab_size": 50, "resid_pdrop": 0.3},
        {"n_inner": 96, "activation_function": "gelu_pytorch_tanh"},
        {"reorder_and_upcast_attn": True},
    ],
)
def test_what_transformers_writes_is_the_same_model_to_us(tmp_path, settings):
    theirs = gpt2(**settings)
    theirs.save_pretrained(tmp_path)
    mine = load_hugging_face(tmp_path)
    assert_same(mine, theirs)
    assert mine.cfg["drop_rate"] == theirs.config.resid_pdrop and mine.cfg["qkv_bias"]


@pytest.mark.parametrize("size", SIZES)
def test_the_four_sizes(tmp_path, size):
    """Their layers and heads with small vectors, and the shapes of all their tensors in full."""
    n_embd, n_layer, n_head, parameters = SIZES[size]
    theirs = gpt2(n_embd=2 * n_head, n_layer=n_layer, n_head=n_head)
    theirs.save_pretrained(tmp_path)
    assert_same(load_hugging_face(tmp_path), theirs)
    with torch.device("meta"):  # shapes without numbers
        theirs = GPT2LMHeadModel(GPT2Config(n_embd=n_embd, n_layer=n_layer, n_head=n_head))
    assert theirs.num_parameters() == parameters
    cfg = {**GPT_CONFIG_124M, "emb_dim": n_embd, "n_layers": n_layer, "context_length": 1024}
    shapes = {name.removeprefix("transformer."): p.shape for name, p in theirs.state_dict().items()}
    assert shapes == {name: shape for name, shape, _ in _layout(cfg)}


def as_gpt2s_own(folder, **settings):
    """Write a GPT-2 as the published one is: names without prefix, tied, masks beside weights."""
    theirs = gpt2(**settings)
    theirs.save_pretrained(folder)
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    mask = torch.ones(1, 1, 16, 16).tril()
    tensors |= {f"h.{i}.attn.bias": mask.clone() for i in range(2)}
    tensors |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return theirs


def test_the_published_gpt2s_names(tmp_path):
    theirs = as_gpt2s_own(tmp_path)
    mine = load_hugging_face(tmp_path)
    assert_same(mine, theirs)
    assert_same(mine, AutoModelForCausalLM.from_pretrained(tmp_path))


def test_shards(tmp_path):
    theirs = gpt2(tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert_same(load_hugging_face(tmp_path), theirs)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]
)
def test_other_dtypes(tmp_path, dtype):
    theirs = gpt2().to(dtype)
    theirs.save_pretrained(tmp_path)
    mine = load_hugging_face(tmp_path)
    assert_same(mine, theirs.float())
    assert {p.dtype for p in mine.parameters()} == {torch.float32}


def test_a_head_that_is_stored_though_tied(tmp_path):
    theirs = gpt2()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(61, 24)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(load_hugging_face(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path))


def test_biases_that_transformers_trained(tmp_path):
    save_hugging_face(ours(), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        theirs.transformer.h[1].attn.c_attn.bias.normal_()
    theirs.save_pretrained(tmp_path)
    mine = load_hugging_face(tmp_path)
    assert mine.cfg["qkv_bias"]
    assert_same(mine, theirs)


def test_it_goes_on_training(tmp_path):
    as_gpt2s_own(tmp_path / "gpt2")
    mine = load_hugging_face(tmp_path / "gpt2")
    assert torch.equal(mine.tok_emb.weight, mine.out_head.weight)
    ids = torch.arange(400) % 7
    before = (tmp_path / "gpt2" / "model.safetensors").read_bytes()
    history = train_model(mine, *tiny_loaders(ids, ids), warmup_steps=2, learning_rate=1e-2)
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    assert not torch.equal(mine.tok_emb.weight, mine.out_head.weight)
    assert (tmp_path / "gpt2" / "model.safetensors").read_bytes() == before
    save_hugging_face(mine, tmp_path / "mine")
    assert_same(mine, AutoModelForCausalLM.from_pretrained(tmp_path / "mine"))


def test_pretrain_goes_on_from_gpt2_as_it_is_published(tmp_path, monkeypatch, tokenizer, story):
    theirs = as_gpt2s_own(tmp_path / "gpt2", vocab_size=50257)
    (tmp_path / "mine.txt").write_text(story[:1200], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "tune_malloc", lambda: None)
    pretrain.main(["mine.txt", "--start-from", "gpt2", "--precision", "highest", "--epochs", "2"])
    first, *_, last = read_checkpoint("mine.ckpt")["history"]
    ids, _ = split_tokens(text_to_token_ids(story[:1200], tokenizer)[0], 16)
    ids = ids[: (len(ids) - 1) // 16 * 16 + 1]  # whole windows
    inputs, targets = map(torch.cat, zip(*eval_loader(ids, 16), strict=True))
    with torch.no_grad():
        logits = theirs(inputs).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert first[3] == pytest.approx(expected.item(), abs=1e-4)
    assert last[3] < first[3]


# 3. What does not fit -----------------------------------------------------------------------


def settings(**changes):
    """Return a change of config.json."""

    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def tensors(**changes):
    """Return a change of the weights: name__with__underscores=function of the tensor, or None."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        for name, function in changes.items():
            name = name.replace("__", ".")
            tensor = tensors.pop(name, None)
            if function:
                tensors[name] = function(tensor).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def content(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def only_pytorch_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shards(change):
    def with_shards(folder):
        gpt2().save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
        change(folder)

    return with_shards


def not_finite(tensor):
    tensor.view(-1)[3] = torch.nan
    return tensor


WRONG = {
    "another architecture": (settings(model_type="llama"), "model_type 'llama'"),
    "another activation": (settings(activation_function="relu"), "activation_function 'relu'"),
    "another epsilon": (settings(layer_norm_epsilon=1e-6), "layer_norm_epsilon 1e-06"),
    "scaled by layer": (
        settings(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx True"
    ),
    "not scaled": (settings(scale_attn_weights=False), "scale_attn_weights False"),
    "cross-attention": (settings(add_cross_attention=True), "add_cross_attention True"),
    "narrow": (settings(n_inner=48), "n_inner 48, not one of .*96"),
    "quantized": (settings(quantization_config={"bits": 4}), "quantization_config {'bits': 4}"),
    "heads that do not divide": (settings(n_head=5), "emb_dim 24 .* n_heads 5 .*its n_head"),
    "no number": (settings(n_layer="2"), "n_layers .*'2'"),
    "a huge number of layers": (settings(n_layer=10**12), r"it has no h\.2\.ln_1\.weight"),
    "huge vectors": (settings(n_embd=3 * 10**30), r"wte\.weight is \(61, 24\), not \(61, 30+\)"),
    "fewer layers": (settings(n_layer=1), r"no place for: h\.1\."),
    "a longer context": (settings(n_positions=17), r"wpe.weight is \(16, 24\), not \(17, 24\)"),
    "another vocabulary": (settings(vocab_size=60), r"wte.weight is \(61, 24\), not \(60, 24\)"),
    "no head": (settings(tie_word_embeddings=False), r"it has no lm_head\.weight"),
    "a tensor missing": (tensors(transformer__h__1__ln_2__bias=None), r"no h\.1\.ln_2\.bias"),
    "a tensor more": (
        tensors(score__weight=lambda _: torch.ones(2, 24)), r"no place for: score\.weight"
    ),
    "a tensor twice": (tensors(wte__weight=lambda _: torch.ones(61, 24)), r"wte\.weight twice"),
    "a matrix not transposed": (
        tensors(transformer__h__0__mlp__c_fc__weight=lambda t: t.T),
        r"h\.0\.mlp\.c_fc\.weight is \(96, 24\), not \(24, 96\)",
    ),
    "whole numbers": (
        tensors(transformer__h__0__mlp__c_fc__weight=lambda t: t.to(torch.int8)),
        r"h\.0\.mlp\.c_fc\.weight holds torch\.int8",
    ),
    "not finite": (tensors(transformer__ln_f__bias=not_finite), r"ln_f\.bias .*not finite"),
    "a config that is no JSON": (content("config.json", b"{"), "config.json is damaged"),
    "a config that is no text": (content("config.json", b"\xff\xfe"), "config.json is damaged"),
    "a config that is a list": (content("config.json", b"[]"), "config.json is damaged"),
    "a config too deep": (content("config.json", b"[" * 10**6), "config.json is damaged"),
    "no weights, an LFS pointer": (
        content("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d"),
        "model.safetensors is damaged, or Git LFS's",
    ),
    "empty weights": (content("model.safetensors", b""), "model.safetensors is damaged"),
    "another tokenizer": (content("vocab.json", b'{"a": 0}'), r"than GPT-2's \(vocab\.json\)"),
    "another tokenizer in one file": (
        content("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}'), r"GPT-2's \(tokenizer\.json\)"
    ),
    "a tokenizer that is none": (content("tokenizer.json", b'{"model": 1}'), r"tokenizer\.json"),
    "a tokenizer of another kind": (content("vocab.txt", b"[PAD]"), r"GPT-2's \(vocab\.txt\)"),
    "a damaged tokenizer": (content("vocab.json", b"{"), r"vocab\.json is damaged"),
    "an index of nothing": (
        shards(content("model.safetensors.index.json", b"{}")), "index.json is damaged"
    ),
    "an index out of the folder": (
        shards(content("model.safetensors.index.json", b'{"weight_map": {"a": "../b"}}')),
        "index.json is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named(tmp_path, wrong):
    change, message = WRONG[wrong]
    gpt2().save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_hugging_face(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def no_shard(folder):
    sorted(folder.glob("model-*"))[1].unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no folder with a config.json"),
        (lambda folder: (folder / "config.json").unlink(), "no folder with a config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors in"),
        (only_pytorch_bin, "pytorch_model.bin is not read"),
        (shards(no_shard), "model-00002-of-"),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, message):
    folder = tmp_path / "model"
    gpt2().save_pretrained(folder)
    change(folder)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_hugging_face(folder)
    assert str(folder) in str(caught.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"weights")
    with pytest.raises(FileNotFoundError, match=r"weights\.pth is no folder"):
        load_hugging_face(tmp_path / "weights.pth")
    with pytest.raises(OSError, match=r"weights\.pth"):
        save_hugging_face(ours(), tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == b"weights"


@pytest.mark.parametrize("times", [60, pytest.param(2000, marks=pytest.mark.long)])
def test_damaged_files_are_refused_or_have_the_right_shapes(tmp_path, times):
    gpt2().save_pretrained(tmp_path)
    path, rng, refused = tmp_path / "model.safetensors", random.Random(0), 0
    whole, header = path.read_bytes(), int.from_bytes(path.read_bytes()[:8], "little") + 8
    for i in range(times):
        if i % 2:  # in its table of contents; the rest is numbers, of which each may be right
            path.write_bytes(damaged(whole[:header], rng) + whole[header:])
        else:
            path.write_bytes(damaged(whole, rng))
        try:
            found = load_hugging_face(tmp_path)
            assert found(IDS).shape == (4, 12, 61)
            assert all(p.isfinite().all() for p in found.parameters())
        except ValueError as error:
            refused += 1
            assert str(tmp_path) in str(error)
    assert refused > times / 2


# 4. What is not written ---------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = ours()
    save_hugging_face(model, tmp_path)
    with torch.no_grad():
        model.trf_blocks[1].ff.layers[0].bias[5] = torch.inf
    with pytest.raises(ValueError, match=r"trf_blocks\.1\.ff\.layers\.0\.bias .*not finite"):
        save_hugging_face(model, tmp_path)
    assert same_weights(load_hugging_face(tmp_path), ours())


def test_8_bit_weights_are_not_saved(tmp_path):
    model = ours()
    quantize(model)
    with pytest.raises(ValueError, match="quantized, nothing saved"):
        save_hugging_face(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: gpt2().save_pretrained(folder, max_shard_size="20KB"),
        lambda folder: save_hugging_face(ours(n_heads=2), folder),
    ],
)
def test_another_model_is_not_overwritten(tmp_path, other):
    other(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"another model: nothing saved"):
        save_hugging_face(ours(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("older", [True, False])
def test_a_full_disk_leaves_all_files_as_they_were(small_disk, older):
    new, folder, ends = ours(seed=1, n_layers=4), small_disk / "model", []
    save_hugging_face(new, folder)
    size = sum((path.stat().st_size + 4095) // 4096 * 4096 for path in folder.iterdir())
    shutil.rmtree(folder)
    if older:
        save_hugging_face(ours(n_layers=4), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if older else {}
    for left in range(0, size + 8192, 4096):
        (small_disk / "other").write_bytes(bytes(DISK - older * size - left))
        try:
            save_hugging_face(new, folder)
        except OSError as error:
            assert re.search(r"No space left on device.*unchanged", str(error))
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
            ends.append("full")
        else:
            assert same_weights(load_hugging_face(folder), new)
            ends.append("saved")
            break
    assert ends == ["full"] * (len(ends) - 1) + ["saved"] and len(ends) > 3


def test_killed_while_saving(tmp_path, fork):
    save_hugging_face(ours(), tmp_path)
    rng, in_the_middle = random.Random(0), 0
    while in_the_middle < 5:
        process = fork(save_again_and_again, save_hugging_face, [ours(0), ours(1)], tmp_path)
        process.join(timeout=rng.uniform(0, 0.2))  # a random moment, not a wait for something
        process.kill()
        process.join()
        unfinished = list(tmp_path.glob("*.partial"))
        in_the_middle += bool(unfinished)
        for path in unfinished:
            path.unlink()
        found = load_hugging_face(tmp_path)
        assert any(same_weights(found, ours(seed)) for seed in (0, 1))
