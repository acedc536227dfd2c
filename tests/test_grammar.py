"""The lesson's small language: its sampler, its exact entropy and its parser agree."""

import math
import random
import statistics

import pytest

from support.lesson import grammar
from support.lesson.grammar import GRAMMAR, LOAD, NAMES, NO_AGREEMENT, judge, sample

RIGHT = (
    "at noon Cora carried a bell , a rope and a lamp home . "
    "the keepers who painted the old tower were late . "
    "she looked at the pilot . "
    "at last Cora put down the bell , the rope and the lamp ."
)


def is_grammatical(paragraph):
    """Return whether the grammar can produce this paragraph, line break included."""
    verdicts, ended = judge(paragraph), list(paragraph[-1:]) == ["\n"]
    return ended and paragraph.count("\n") == 1 and len(verdicts) in (3, 4) and all(verdicts)


def probability(words, symbols=("PARAGRAPH",)):
    """Return the probability that symbols become words, summed over all derivations."""
    if not symbols:
        return float(not words)
    first, *rest = symbols
    if first not in GRAMMAR:
        return probability(words[1:], rest) if words[:1] == [first] else 0.0
    rules = GRAMMAR[first].items()
    return sum(p * probability(words, [*rule.split(" "), *rest]) for rule, p in rules)


def paragraph_probability(words):
    """Return a paragraph's probability, its name and its list included."""
    name = next((word for word in words if word in NAMES), "")
    load = [word for word in words if word in LOAD][:3]
    memory = {name: "NAME", NAMES.get(name): "PRONOUN"}
    memory |= zip(load, ("FIRST", "SECOND", "THIRD"), strict=False)
    as_symbols = [memory.get(word, word) for word in words]
    return probability(as_symbols) / grammar.MEMORIES if len({*load}) == 3 else 0.0


@pytest.mark.parametrize("rules", [GRAMMAR, NO_AGREEMENT])
def test_entropy_and_length_agree_with_samples(rules):
    rng = random.Random(1)
    words, nats = zip(*(sample(rng, rules) for _ in range(4000)), strict=True)
    exact = grammar.expected("PARAGRAPH", rules)
    for expected, drawn in zip(exact, (nats, list(map(len, words))), strict=True):
        error = statistics.stdev(drawn) / math.sqrt(len(drawn))
        assert abs(statistics.mean(drawn) - expected) < 3 * error < 0.02 * expected


def test_random_verbs_cost_ln_2_each():
    verbs = 1.5 * 0.7  # sentences with "was" or "were" in a paragraph
    difference = grammar.expected("PARAGRAPH", NO_AGREEMENT)[0] - grammar.expected("PARAGRAPH")[0]
    assert math.isclose(difference, verbs * math.log(2))


def test_samples_are_grammatical_and_have_one_derivation():
    rng = random.Random(2)
    for _ in range(100):
        words, nats = sample(rng)
        assert is_grammatical(words)
        assert math.isclose(paragraph_probability(words), math.exp(-nats))


def test_parser_accepts_changed_paragraphs_exactly_if_the_rules_can_produce_them():
    rng, verdicts = random.Random(3), []
    for _ in range(1500):
        words, _ = sample(rng)
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        match rng.randrange(4):
            case 0:
                words[i] = rng.choice(grammar.VOCABULARY)
            case 1:
                words[i], words[j] = words[j], words[i]
            case 2:
                del words[i]
            case 3:
                words.insert(i, words[j])
        verdicts.append(is_grammatical(words))
        assert verdicts[-1] == (paragraph_probability(words) > 0), " ".join(words)
    assert 20 < sum(verdicts) < 1000


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("late", "cold", []),
        ("she looked", "Cora looked", []),
        ("tower were", "towers were", []),
        ("were", "was", [1]),
        ("keepers who painted the old tower", "keeper", [1]),
        ("keepers", "tower", [1]),
        ("she looked", "he looked", [2]),
        ("she looked", "Ada looked", [2]),
        ("last Cora", "last Flora", [3]),
        ("the bell , the rope", "the rope , the bell", [3]),
        ("and the lamp", "and the kettle", [3]),
        ("a rope", "a bell", [0, 2, 3]),
        ("home .", ".", [0, 2, 3]),
        ("at last", "at noon", [3]),
    ],
)
def test_parser_finds_the_wrong_sentences(old, new, wrong):
    assert old in RIGHT
    verdicts = judge(RIGHT.replace(old, new).split())
    assert [i for i, right in enumerate(verdicts) if not right] == wrong


@pytest.mark.parametrize(
    "words", [[], ["\n"], [".", "\n"], RIGHT.split(), [*RIGHT.split(), "the", "\n"]]
)
def test_parser_rejects_other_texts(words):
    assert is_grammatical([*RIGHT.split(), "\n"])
    assert not is_grammatical(words)
    assert len(judge(words)) == len(grammar.sentences(words))


def test_words_as_ids_and_as_readable_text():
    words = [*RIGHT.split(), "\n"]
    assert [grammar.VOCABULARY[i] for i in grammar.encode(words)] == words
    first, _ = sample(random.Random(5))
    assert grammar.text_ids(90, 5).tolist()[: len(first)] == grammar.encode(first).tolist()
    assert len(grammar.text_ids(90, 5)) == 90
    text = grammar.spell(words)
    assert text.startswith("At noon Cora carried a bell, a rope and a lamp home. The keepers who")
    assert text.endswith(
        "late. She looked at the pilot. At last Cora put down the bell, the rope and the lamp."
    )
