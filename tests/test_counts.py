"""Counted models beside probabilities worked out by hand."""

import math

import torch

from support.lesson.counts import count_probs, counted_models, fit_weights


def test_shares_by_hand_and_shorter_contexts_where_longer_ones_are_unknown():
    train, text = torch.tensor([0, 1, 0, 1, 2, 0]), torch.tensor([0, 1, 0, 2, 1])
    blind, ones, pairs, triples = count_probs(text, train, vocab_size=4).T.tolist()
    assert blind == [1 / 4] * 5
    assert ones == [3 / 6, 2 / 6, 3 / 6, 1 / 6, 2 / 6]
    assert pairs == [3 / 6, 2 / 2, 1 / 2, 0 / 2, 0 / 1]
    assert triples == [3 / 6, 2 / 2, 1 / 2, 0 / 1, 0 / 1]  # 0, 2 is unknown: the pairs' share


def test_the_weights_are_the_best_ones():
    probs = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    best = fit_weights(probs)
    assert math.isclose(best.sum(), 1)
    for other in torch.softmax(torch.randn(200, 3, dtype=torch.double), 1):
        assert (probs @ other).log().sum() <= (probs @ best).log().sum() + 1e-6


def test_counts_of_longer_contexts_predict_a_text_with_rules_better():
    text = torch.tensor([0, 1, 2, 0, 2, 1] * 60)  # what follows depends on two tokens
    losses = counted_models(text, text, vocab_size=3)
    means = [loss.mean().item() for loss in losses.values()]
    assert list(losses) == ["unigram counts", "bigram counts", "trigram counts"]
    assert all(len(loss) == len(text) - 1 for loss in losses.values())
    assert means[0] > means[1] > means[2] and means[2] < 0.1
