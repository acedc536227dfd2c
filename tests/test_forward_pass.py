"""One forward pass: a change in the block changes everything that runs the model alike."""

import math

import pytest
import tiktoken
import torch
from conftest import TINY_CONFIG

from gpt import GPTModel, MultiHeadAttention, TransformerBlock
from support.inspection.attention import attention_weights
from support.model.hugging_face import load_hugging_face, save_hugging_face
from support.model.quantization import quantize
from support.page import views
from support.page.batch import Batch
from utils import generate_text_simple, stream

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiktoken.get_encoding("gpt2")
PROMPT = torch.arange(5)[None]  # (1, T)


def new_model():
    torch.manual_seed(0)
    model = GPTModel({**TINY_CONFIG, "vocab_size": 50257}).eval()
    for block in model.trf_blocks:  # attention with large and uneven effects
        torch.nn.init.normal_(block.att.W_query.weight)
        torch.nn.init.normal_(block.att.out_proj.weight)
    torch.nn.init.normal_(model.out_head.weight)
    return model


@torch.no_grad()
def plain_logprobs(model, ids):
    return model(ids)[0].log_softmax(-1)  # (T, V)


def from_stream(model, tmp_path, **settings):
    steps = list(stream(model, PROMPT, 8, 16, **settings))
    text = torch.cat([PROMPT, *(ids for ids, _ in steps)], dim=1)
    observed = torch.cat([logits for _, logits in steps]).log_softmax(-1)
    return observed, plain_logprobs(model, text[:, :-1])[4:]


def with_drafts(model, tmp_path):
    text = generate_text_simple(model, PROMPT, 8, 16)
    return from_stream(model, tmp_path, draft_ids=text)


def from_batch(model, tmp_path):
    batch = Batch(model, TOKENIZER)
    slots = [batch.add(PROMPT, 8, 16, temperature=t) for t in (0, 1.0)]
    tokens = {slot: [] for slot in slots}
    while batch.slots:
        for slot, new in batch.step():
            tokens[slot] += new
    observed, expected = [], []
    for slot in slots:
        ids = torch.tensor([[*PROMPT[0].tolist(), *(token.token_id for token in tokens[slot])]])
        logprobs = plain_logprobs(model, ids[:, :-1])[4:]
        observed += [token.logprob for token in tokens[slot]]
        expected += logprobs.gather(1, ids[0, 5:, None])[:, 0].tolist()
    return torch.tensor(observed), torch.tensor(expected)


def from_quantized_batch(model, tmp_path):
    quantize(model)
    return from_batch(model, tmp_path)


def from_page_scores(model, tmp_path):
    ids = torch.arange(12)[None]
    observed = [token["logprob"] for token in views.scores(model, ids[0].tolist())["tokens"]]
    return torch.tensor(observed), plain_logprobs(model, ids)[:-1].gather(1, ids[0, 1:, None])[:, 0]


def from_page_next_token(model, tmp_path):
    ids = torch.arange(12)[None]
    top = views.next_token(model, TOKENIZER, ids[0].tolist())["top"]
    logprobs = plain_logprobs(model, ids)[-1]
    expected = [logprobs[token["id"]] - logprobs.max() for token in top]
    return torch.tensor([token["logit"] for token in top]), torch.tensor(expected)


def from_attention(model, tmp_path):
    inputs, layers = [], []
    note = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: inputs.append((module, args[0]))
    )
    model(PROMPT)
    note.remove()
    for att, x in (pair for pair in inputs if isinstance(pair[0], MultiHeadAttention)):
        q, k = (f(x)[0].unflatten(-1, (3, -1)).transpose(0, 1) for f in (att.W_query, att.W_key))
        scores = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e9)
        layers.append(scores.softmax(-1))
    return attention_weights(model, PROMPT), torch.stack(layers)


def from_page_attention(model, tmp_path):
    observed = torch.tensor(views.attention(model, PROMPT[0].tolist())) / 1000
    return observed, from_attention(model, tmp_path)[1][:, :, -1]


def from_export(model, tmp_path):
    save_hugging_face(model, tmp_path / "exported")
    loaded = load_hugging_face(tmp_path / "exported")
    return plain_logprobs(loaded, PROMPT), plain_logprobs(model, PROMPT)


def scaled_forward(self, x, cache=None):
    x = x + self.drop(0.5 * self.att(self.norm1(x), cache))
    return x + self.drop(self.ff(self.norm2(x)))


CONSUMERS = [
    from_stream, with_drafts, from_batch, from_quantized_batch, from_page_scores,
    from_page_next_token, from_attention, from_page_attention, from_export,
]  # fmt: skip


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: consumer.__name__)
def test_a_change_in_the_block_reaches_everything(consumer, monkeypatch, tmp_path):
    before, expected = consumer(new_model(), tmp_path / "before")
    torch.testing.assert_close(before, expected, atol=1e-3, rtol=1e-3)
    monkeypatch.setattr(TransformerBlock, "forward", scaled_forward)
    after, expected = consumer(new_model(), tmp_path / "after")
    torch.testing.assert_close(after, expected, atol=1e-3, rtol=1e-3)
    assert (after - before).abs().max() > 0.01
