"""Models made of counts: unigrams, bigrams and trigrams, interpolated."""

from collections import Counter

import torch
from torch import Tensor

NAMES = ("unigram counts", "bigram counts", "trigram counts")


def count_probs(ids: Tensor, train_ids: Tensor, vocab_size: int) -> Tensor:
    """Return each token's probability under counts of `train_ids`, (T, 4).

    Column 0 is blind guessing; columns 1 to 3 are unigram, bigram and trigram counts. Where a
    context never occurs, the next shorter one decides.
    """
    text, train = ids.tolist(), train_ids.tolist()
    columns = [[1 / vocab_size] * len(text)]
    for n in range(len(NAMES)):  # tokens of context
        runs = Counter(zip(*(train[i:] for i in range(n + 1)), strict=False))
        contexts = Counter(run[:-1] for run in runs.elements())
        column = list(columns[-1])
        for i in range(n, len(text)):
            run = tuple(text[i - n : i + 1])
            if times := contexts[run[:-1]]:
                column[i] = runs[run] / times
        columns.append(column)
    return torch.tensor(columns, dtype=torch.double).T


def fit_weights(probs: Tensor, steps: int = 200) -> Tensor:
    """Return the weights (N,) with which the mixed columns of `probs` (T, N) fit the tokens best.

    By expectation maximization (Jelinek and Mercer 1980, "Interpolated estimation of Markov source
    parameters from sparse data").
    """
    weights = torch.full_like(probs[0], 1 / probs.size(1))
    for _ in range(steps):
        shares = weights * probs  # (T, N): how much of p each column explains
        weights = (shares / shares.sum(1, keepdim=True)).mean(0)
    return weights


def counted_models(ids: Tensor, train_ids: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """Return the loss of each token of `ids` but the first, (T - 1,), by model.

    The mixes are fitted to the last tenth of the training text, with counts of the rest.
    """
    cut = len(train_ids) * 9 // 10
    held_out = count_probs(train_ids[cut:], train_ids[:cut], vocab_size)
    probs = count_probs(ids, train_ids, vocab_size)[1:]
    return {
        name: -(probs[:, :n] @ fit_weights(held_out[:, :n])).log()
        for n, name in enumerate(NAMES, start=2)  # columns: blind guessing and n - 1 orders
    }
