"""The contenders: each function builds one and returns the work of a round. `WORK` lists them."""

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tiktoken
import torch
from torch.nn import functional as F

import gpt
from support.files import read_text
from support.model.hugging_face import save_hugging_face
from support.page.batch import Batch
from support.training.machine import tune_malloc
from utils import generate, load_model, text_to_token_ids

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "pretrain-story-model.pth"
DOWNLOADS = ROOT / "benchmarks" / "peers"  # ignored by git
NANOGPT_COMMIT = "3adf61e154c3fe3fca428ad6bc3818b27a3b8291"
CONFIG = gpt.GPT_CONFIG_124M
LENGTH = CONFIG["context_length"]
UNSEEN = "The mountains were quiet that night, and"  # a prompt that is not in the story
Work = Callable[[Any, int], int]  # (case, seed) -> the number of tokens that it processed


@cache
def story_ids() -> torch.Tensor:
    """Return the token ids of the story, shape (T,)."""
    story = read_text(ROOT / "dataset" / "story.txt")
    return text_to_token_ids(story, tiktoken.get_encoding("gpt2"))[0]


# 1. A training step: the case is the precision of float32 products --------------------------


def training(step: Callable[[torch.Tensor, torch.Tensor], object]) -> Work:
    """Return the work of one training step on the story's first window of 256 tokens."""
    window = story_ids()[None, : LENGTH + 1]

    def work(precision: str, seed: int) -> int:
        torch.set_float32_matmul_precision(precision)
        step(window[:, :-1], window[:, 1:])
        return LENGTH

    return work


def our_step(folder: Path) -> Work:
    tune_malloc()  # as in the lesson
    model = gpt.GPTModel(CONFIG)
    optimizer = gpt.create_optimizer(model, weight_decay=0.1)
    return training(lambda *batch: gpt.train_step(model, optimizer, batch, 1, 4e-4, 1.0))


def nanogpt_step(folder: Path) -> Work:
    """Return a step of nanoGPT's train.py. Raises OSError if its model cannot be downloaded."""
    if not (DOWNLOADS / "nanogpt.py").exists():
        url = f"https://raw.githubusercontent.com/karpathy/nanoGPT/{NANOGPT_COMMIT}/model.py"
        with urllib.request.urlopen(url, timeout=30) as answer:
            model_py = answer.read()
        DOWNLOADS.mkdir(exist_ok=True)
        (DOWNLOADS / "nanogpt.py").write_bytes(model_py)
    sys.path.append(str(DOWNLOADS))
    import nanogpt

    config = nanogpt.GPTConfig(block_size=LENGTH, vocab_size=50257, dropout=0.1, bias=False)
    model = nanogpt.GPT(config).train()  # otherwise, its defaults are GPT-2's small shape
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        model(inputs, targets.contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return training(step)


def book_step(folder: Path) -> Work:
    """Return a step of the book: the model of chapter 4, trained as in chapter 5."""
    from llms_from_scratch.ch04 import GPTModel

    model = GPTModel(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return training(step)


def matrix_products(folder: Path) -> Work:
    """Return the products of a step: each matrix's output, input gradient and own gradient."""
    with torch.device("meta"):
        parameters = dict(gpt.GPTModel(CONFIG).named_parameters())
    shapes = [p.shape for name, p in parameters.items() if p.dim() == 2 and "emb" not in name]
    matrices = [
        (torch.randn(LENGTH, inner), torch.randn(out, inner), torch.randn(LENGTH, out),
         torch.empty(LENGTH, out), torch.empty(LENGTH, inner), torch.empty(out, inner))
        for out, inner in shapes
    ]  # fmt: skip

    def step(*batch: torch.Tensor) -> None:
        for x, weight, grad, y, x_grad, weight_grad in matrices:
            torch.mm(x, weight.t(), out=y)
            torch.mm(grad, weight, out=x_grad)
            torch.mm(grad.t(), x, out=weight_grad)

    return training(step)


# 2. Generation with the shipped weights: the case says what to generate ---------------------


class Case(NamedTuple):
    """The texts of a round: how many concurrently, how long, and how they are sampled."""

    texts: int
    new_tokens: int  # in each text
    temperature: float = 0.0  # above 0: with top-k 50
    drafts: bool = False  # looked up in the story
    in_story: bool = True  # the prompts are from the story


@cache
def prompts(case: Case) -> list[list[int]]:
    """Return prompts of nine tokens, spread over the story; the first is its beginning."""
    if not case.in_story:
        return text_to_token_ids(UNSEEN, tiktoken.get_encoding("gpt2")).tolist()
    ids = story_ids()
    return [ids[i * len(ids) // case.texts :][:9].tolist() for i in range(case.texts)]


def generation(new_ids: Callable[[Case, int], list[list[int]]]) -> Work:
    """Return the work of generating texts; `new_ids(case, seed)` returns their new tokens."""

    def work(case: Case, seed: int) -> int:
        lengths = [len(ids) for ids in new_ids(case, seed)]
        assert lengths == [case.new_tokens] * case.texts, lengths
        return sum(lengths)

    return work


def our_rows(model: gpt.GPTModel) -> Callable[[Case, int], list[list[int]]]:
    """Return this project's `generate`, with one row for each text."""

    def new_ids(case: Case, seed: int) -> list[list[int]]:
        idx, generator = torch.tensor(prompts(case)), torch.Generator().manual_seed(seed)
        ids = generate(
            model, idx, case.new_tokens, LENGTH, case.temperature, top_k=50,
            generator=generator, draft_ids=story_ids() if case.drafts else None,
        )  # fmt: skip
        return ids[:, idx.size(1) :].tolist()

    return new_ids


def our_int8(folder: Path) -> Work:
    """Return `generate` with 8-bit weights for one text, and the page's batch for several."""
    model, tokenizer = load_model(WEIGHTS, dtype=torch.int8), tiktoken.get_encoding("gpt2")
    one_text = our_rows(model)

    def new_ids(case: Case, seed: int) -> list[list[int]]:
        if case.texts == 1:
            return one_text(case, seed)
        batch = Batch(model, tokenizer)
        ids: dict[Any, list[int]] = {
            batch.add(torch.tensor([prompt]), case.new_tokens, LENGTH): []
            for prompt in prompts(case)
        }
        while done := batch.step():
            for text, tokens in done:
                ids[text] += [token.token_id for token in tokens]
        return list(ids.values())

    return generation(new_ids)


def convert(folder: Path) -> None:
    """Write the shipped weights into `folder`, in the formats of Hugging Face and CTranslate2."""
    from ctranslate2.converters import TransformersConverter

    save_hugging_face(load_model(WEIGHTS), folder / "hugging_face")
    TransformersConverter(str(folder / "hugging_face")).convert(str(folder / "ctranslate2"))


def hugging_face(folder: Path) -> Work:
    """Return Hugging Face's `generate`, with its key-value cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hugging_face")

    def new_ids(case: Case, seed: int) -> list[list[int]]:
        idx = torch.tensor(prompts(case))
        ids = model.generate(
            idx, attention_mask=torch.ones_like(idx), max_new_tokens=case.new_tokens,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return ids[:, idx.size(1) :].tolist()

    return generation(new_ids)


def ctranslate2(folder: Path, compute_type: str) -> Work:
    """Return CTranslate2's `generate_batch`, on as many threads as PyTorch uses."""
    from ctranslate2 import Generator

    path = folder / "ctranslate2"
    generator = Generator(
        str(path), compute_type=compute_type, inter_threads=1, intra_threads=torch.get_num_threads()
    )
    words = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def new_ids(case: Case, seed: int) -> list[list[int]]:
        texts = [[words[token_id] for token_id in prompt] for prompt in prompts(case)]
        results = generator.generate_batch(
            texts, max_length=case.new_tokens, end_token=[], include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]

    return generation(new_ids)


# 3. In the contender's process --------------------------------------------------------------

STEP, FLOAT32 = "this project", "this project, float32"
INT8, INT4 = "this project, 8 bits", "this project, 4 bits"
NANOGPT, BOOK, PRODUCTS = "nanoGPT", "llms-from-scratch", "matrix products alone"
FACE, CT2_FLOAT32, CT2_INT8 = "Hugging Face", "CTranslate2, float32", "CTranslate2, 8 bits"
PEERS = (NANOGPT, BOOK, FACE, CT2_FLOAT32, CT2_INT8)
WORK: dict[str, Callable[[Path], Work]] = {
    STEP: our_step,
    NANOGPT: nanogpt_step,
    BOOK: book_step,
    PRODUCTS: matrix_products,
    FLOAT32: lambda folder: generation(our_rows(load_model(WEIGHTS))),
    INT8: our_int8,
    INT4: lambda folder: generation(our_rows(load_model(WEIGHTS, dtype="int4"))),
    FACE: hugging_face,
    CT2_FLOAT32: lambda folder: ctranslate2(folder, "float32"),
    CT2_INT8: lambda folder: ctranslate2(folder, "int8"),
}
work: Work  # of this process


def build(name: str, folder: Path) -> None:
    """Build a contender. Raises ImportError or OSError if it is not available."""
    global work
    with redirect_stdout(sys.stderr):  # the program prints its tables alone
        work = WORK[name](folder)


def speed(case: Any, seed: int) -> float:
    """Return the tokens per second of one round."""
    start = time.perf_counter()
    tokens = work(case, seed)
    return tokens / (time.perf_counter() - start)


def operations(case: Case) -> float:
    """Return how many PyTorch operations Python calls in a decode step, without the prompts'."""
    counts = []
    for new_tokens in (8, 16):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            work(case._replace(new_tokens=new_tokens), 0)
        counts.append(sum(event.cpu_parent is None for event in profile.events()))
    return (counts[1] - counts[0]) / 8
