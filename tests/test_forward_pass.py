"""One forward pass: a change in the block changes everything that runs the model alike."""

import math

import pytest
import tiktoken
import torch
from conftest import TINY_CONFIG

from gpt import GPTModel, TransformerBlock
from support.inspection.attention import attention_weights
from support.model.hugging_face import save_hugging_face
from support.model.quantization import quantize
from support.page import views
from support.page.batch import Batch
from utils import load_model, stream

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiktoken.get_encoding("gpt2")
PROMPT = torch.arange(5)[None]  # (1, T)
IDS = PROMPT[0].tolist()


def new_model():
    torch.manual_seed(0)
    model = GPTModel({**TINY_CONFIG, "vocab_size": 50257}).eval()
    for block in model.trf_blocks:  # attention with large and uneven effects
        torch.nn.init.normal_(block.att.W_query.weight)
        torch.nn.init.normal_(block.att.out_proj.weight)
    torch.nn.init.normal_(model.out_head.weight)
    return model


def scaled_forward(self, x, cache=None):
    x = x + self.drop(0.5 * self.att(self.norm1(x), cache))
    return x + self.drop(self.ff(self.norm2(x)))


def ids_and_logprobs_of_a_batch(model):
    batch, tokens = Batch(model, TOKENIZER), []
    batch.add(PROMPT, 8, 16)
    while batch.slots:
        tokens += batch.step()[0][1]
    return [token.token_id for token in tokens], [token.logprob for token in tokens]


def logits_of_a_stream(model, **settings):
    return [logits[0].tolist() for _, logits in stream(model, PROMPT, 8, 16, **settings)]


def logits_of_an_export(model, folder):
    save_hugging_face(model, folder)
    return load_model(folder)(PROMPT).tolist()


CONSUMERS = {
    "stream": lambda model, _: logits_of_a_stream(model),
    "drafts": lambda model, _: logits_of_a_stream(model, draft_ids=torch.arange(50)),
    "quantized batch": lambda model, _: quantize(model) or ids_and_logprobs_of_a_batch(model)[1],
    "export": logits_of_an_export,
    "scores": lambda model, _: [token["logprob"] for token in views.scores(model, IDS)["tokens"]],
    "next token": lambda model, _: views.next_token(model, TOKENIZER, IDS)["rest"],
    "layers": lambda model, _: [token["prob"] for token in views.layers(model, TOKENIZER, IDS)],
}


@pytest.mark.parametrize("consumer", CONSUMERS.values(), ids=CONSUMERS)
def test_a_change_in_the_block_reaches_everything(consumer, monkeypatch, tmp_path):
    before = torch.tensor(consumer(new_model(), tmp_path))
    monkeypatch.setattr(TransformerBlock, "forward", scaled_forward)
    after = torch.tensor(consumer(new_model(), tmp_path))
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize("forward", [TransformerBlock.forward, scaled_forward])
@torch.no_grad()
def test_batches_and_attention_are_those_of_the_model(forward, monkeypatch):
    monkeypatch.setattr(TransformerBlock, "forward", forward)
    model, layers = new_model(), []
    ids, observed = map(torch.tensor, ids_and_logprobs_of_a_batch(model))
    ids = torch.cat([PROMPT[0], ids])[None]
    logprobs = model(ids[:, :-1])[0, 4:].log_softmax(-1).gather(1, ids[0, 5:, None])
    torch.testing.assert_close(observed, logprobs[:, 0])

    def note(att, args):
        q, k = (
            f(args[0])[0].unflatten(-1, (3, -1)).transpose(0, 1) for f in (att.W_query, att.W_key)
        )
        scores = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e9)
        layers.append(scores.softmax(-1))

    for block in model.trf_blocks:
        block.att.register_forward_pre_hook(note)
    model(PROMPT)
    expected = torch.stack(layers)
    torch.testing.assert_close(attention_weights(model, PROMPT), expected)
    of_page = torch.tensor(views.attention(model, IDS)) / 1000
    torch.testing.assert_close(of_page, expected[:, :, -1], atol=1e-3, rtol=0)
