"""Other projects to compare with: how to install them, move the weights over, and run them."""

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import CONFIG, LENGTH, PEERS, WEIGHTS, Round, generated, prompts

import utils
from support.model.hugging_face import save_hugging_face

HERE = Path(__file__).parent
BOOK, NANO, FACE = "llms-from-scratch", "nanoGPT", "Hugging Face"
CT2, LLAMA = "CTranslate2", "llama.cpp"
PACKAGES = ["transformers==5.24.0", "ctranslate2==4.8.5", "gguf==0.19.0"]  # with what they need
NANOGPT = "https://raw.githubusercontent.com/karpathy/nanoGPT/master/model.py"
NODE = ("node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1")  # llama.cpp, compiled
MOVED = PEERS / "weights"  # the shipped weights in the peers' formats

# 1. Installing ------------------------------------------------------------------------------


def install() -> dict[str, str]:
    """Install the peers apart from the project; return why those that could not be are left out."""
    left_out: dict[str, str] = {}
    for names, step in {
        (BOOK, FACE, CT2, LLAMA): _install_packages,
        (NANO,): _download_nanogpt,
        (LLAMA,): _install_llama,
        (FACE, CT2, LLAMA, "moved"): _move_weights,
    }.items():
        try:
            step()
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            left_out |= dict.fromkeys(names, f"{step.__name__.strip('_')}: {error}")
    return {name: why for name, why in left_out.items() if name != "moved"}


def _install_packages() -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(PEERS)]
    if not all((PEERS / name.split("==")[0]).exists() for name in PACKAGES):
        subprocess.run([*pip, *PACKAGES], check=True)
    if not (PEERS / "llms_from_scratch").exists():
        subprocess.run([*pip, "--no-deps", "-r", str(HERE / "requirements.txt")], check=True)
    importlib.invalidate_caches()  # some folders were not there when Python looked


def _download_nanogpt() -> None:
    if not (PEERS / "model.py").exists():
        urllib.request.urlretrieve(NANOGPT, PEERS / "model.py")


def _install_llama() -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise OSError("its compiled package is for Linux on x86-64")
    if not (PEERS / "node_modules" / "@node-llama-cpp").exists():
        # Without the optional packages: those for GPUs take gigabytes.
        options = ["--prefix", str(PEERS), "--omit=optional", "--ignore-scripts", "--no-audit"]
        subprocess.run(["npm", "install", "--silent", *options, *NODE], check=True)
    shutil.copy(HERE / "llama.mjs", PEERS)  # Node looks for packages beside the file


# 2. The weights in their formats ------------------------------------------------------------


def _move_weights() -> None:
    if MOVED.exists() and MOVED.stat().st_mtime > WEIGHTS.stat().st_mtime:
        return
    shutil.rmtree(MOVED, ignore_errors=True)
    unfinished = MOVED.with_name("weights.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_hugging_face(utils.load_model(WEIGHTS), unfinished / "hugging_face")
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(unfinished / "hugging_face"))
    converter.convert(str(unfinished / "ctranslate2"))
    for kind in ("F32", "Q8_0"):
        write_gguf(unfinished / "hugging_face", unfinished / f"{kind}.gguf", kind)
    unfinished.rename(MOVED)


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """Write a GPT-2 in Hugging Face's format into a file for llama.cpp, its matrices as `kind`."""
    import gguf
    from safetensors.torch import load_file

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(CONFIG["emb_dim"])
    writer.add_feed_forward_length(4 * CONFIG["emb_dim"])
    writer.add_block_count(CONFIG["n_layers"])
    writer.add_head_count(CONFIG["n_heads"])
    writer.add_layer_norm_eps(1e-5)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocabulary["<|endoftext|>"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, CONFIG["n_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        matrix = tensor.dim() == 2 and "wpe" not in name
        dtype = gguf.GGMLQuantizationType[kind if matrix else "F32"]
        array = (tensor.T if ".h." in name and matrix else tensor).contiguous().numpy()
        array = gguf.quants.quantize(array, dtype)
        writer.add_tensor(str(names.get_name(name, (".weight", ".bias"))), array, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# 3. Generation ------------------------------------------------------------------------------


def hugging_face_texts(count: int, new: int, **options: Any) -> Round:
    """Return Hugging Face's `generate`, with its key-value cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MOVED / "hugging_face")
    idx = torch.tensor(prompts(count))
    options |= {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    options |= {"attention_mask": torch.ones_like(idx), "pad_token_id": 0}
    return generated(lambda: model.generate(idx, **options)[:, idx.size(1) :].tolist())


def ctranslate2_texts(count: int, new: int, compute_type: str) -> Round:
    """Return CTranslate2's `generate_batch`, on as many threads as PyTorch takes."""
    import ctranslate2
    from transformers import AutoTokenizer

    generator = ctranslate2.Generator(
        str(MOVED / "ctranslate2"),
        compute_type=compute_type,
        inter_threads=1,
        intra_threads=torch.get_num_threads(),
    )
    tokenizer = AutoTokenizer.from_pretrained(MOVED / "hugging_face")
    texts = [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts(count)]

    def work() -> list[list[int]]:
        results = generator.generate_batch(
            texts, max_length=new, min_length=new, include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]

    return generated(work)


def llama_texts(count: int, new: int, kind: str) -> Round:
    """Return llama.cpp with a sequence for each prompt, in a Node process: see llama.mjs."""
    process = subprocess.Popen(
        ["node", "llama.mjs", str(MOVED / f"{kind}.gguf"), str(count), str(LENGTH)],
        cwd=PEERS, stdin=-1, stdout=-1, text=True,
        env={**os.environ, "THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    question = json.dumps({"prompts": prompts(count), "tokens": new})

    def work() -> list[list[int]]:
        assert process.stdin and process.stdout
        print(question, file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    return generated(work)


def generation(count: int, new: int) -> dict[str, Callable[[], Round]]:
    """Return the peers in generation, by name: `count` prompts at once, `new` tokens for each."""
    lookup = {"prompt_lookup_num_tokens": 10}
    contenders: dict[str, Callable[[], Round]] = {
        FACE: lambda: hugging_face_texts(count, new),
        f"{FACE}, prompt lookup": lambda: hugging_face_texts(count, new, **lookup),
        f"{CT2}, float32": lambda: ctranslate2_texts(count, new, "float32"),
        f"{CT2}, 8 bits": lambda: ctranslate2_texts(count, new, "int8"),
        f"{LLAMA}, float32": lambda: llama_texts(count, new, "F32"),
        f"{LLAMA}, 8 bits": lambda: llama_texts(count, new, "Q8_0"),
    }
    if count > 1:
        del contenders[f"{FACE}, prompt lookup"]  # it takes one prompt at a time
    return contenders
