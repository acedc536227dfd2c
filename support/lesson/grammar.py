"""A small English-like language whose best possible loss is known exactly.

A paragraph needs three kinds of memory: a verb agrees with a subject some words back, a name or
its pronoun returns, and a list is repeated in its order.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Grammar = Mapping[str, Mapping[str, float]]


def zipf(words: str) -> dict[str, float]:
    """Return rules for single words: the second is half as probable as the first, and so on."""
    weights = {word: 1 / rank for rank, word in enumerate(words.split(), start=1)}
    return {word: weight / sum(weights.values()) for word, weight in weights.items()}


def uniform(*rules: str) -> dict[str, float]:
    """Return equally probable rules."""
    return dict.fromkeys(rules, 1 / len(rules))


# A symbol, in capitals, becomes one of its rules; the numbers are their probabilities. Each
# paragraph draws its own NAME, PRONOUN, FIRST, SECOND and THIRD. No rule leads back to its symbol.
GRAMMAR: Grammar = {
    "PARAGRAPH": uniform("OPENING REPORT ENDING \n", "OPENING REPORT REPORT ENDING \n"),
    "OPENING": {"WHEN NAME carried a FIRST , a SECOND and a THIRD ROAD .": 1.0},
    "REPORT": {"the ONE IS STATE .": 0.35, "the MANY ARE STATE .": 0.35, "DEED .": 0.3},
    "ENDING": {"at last SOMEBODY put down the FIRST , the SECOND and the THIRD .": 1.0},
    "ONE": {"PERSON CLAUSE": 0.7, "PERSON": 0.1, "ITEM": 0.2},
    "MANY": {"PEOPLE CLAUSE": 0.7, "PEOPLE": 0.1, "ITEMS": 0.2},
    "IS": {"was": 1.0},
    "ARE": {"were": 1.0},
    "CLAUSE": {"who DID OBJECT": 1.0},
    "OBJECT": {"the THING": 0.3, "the LOOK THING": 0.4, "the THING PLACE": 0.3},
    "THING": {"ITEM": 0.5, "ITEMS": 0.5},
    "DEED": {"SOMEBODY SAW the PEOPLE": 0.3, "SOMEBODY SAW the PERSON": 0.3,
             "SOMEBODY SAW OBJECT": 0.4},
    "SOMEBODY": {"NAME": 0.4, "PRONOUN": 0.6},
    "PERSON": zipf("keeper sailor fisherman widow baker pilot"),
    "PEOPLE": zipf("keepers sailors fishermen widows bakers pilots"),
    "ITEM": zipf("tower boat gate bridge chimney window"),
    "ITEMS": zipf("towers boats gates bridges chimneys windows"),
    "DID": zipf("mended guarded painted built found sold forgot"),
    "LOOK": zipf("old tall grey broken wooden narrow"),
    "STATE": zipf("cold wet late quiet lost ready asleep"),
    "SAW": {"looked at": 0.4, "waited for": 0.3, "sang to": 0.2, "drew": 0.1},
    "PLACE": uniform("by the sea", "on the hill", "in the fog"),
    "WHEN": uniform("one morning", "one night", "at noon", "after the storm"),
    "ROAD": uniform("to the harbour", "up the stairs", "along the beach", "home"),
}  # fmt: skip
NO_AGREEMENT: Grammar = {**GRAMMAR, "IS": uniform("was", "were"), "ARE": uniform("was", "were")}
NAMES = {"Ada": "she", "Bridget": "she", "Cora": "she", "Flora": "she",
         "Amos": "he", "Conrad": "he", "Ezra": "he", "Jonas": "he"}  # fmt: skip
LOAD = ("lamp", "rope", "bell", "kettle", "hammer", "basket", "blanket", "ladder")
MEMORIES = len(NAMES) * math.perm(len(LOAD), 3)  # equally probable names and lists
_PARTS = {part for rules in GRAMMAR.values() for rule in rules for part in rule.split(" ")}
VOCABULARY = sorted({*NAMES, *NAMES.values(), *LOAD} | {x for x in _PARTS if not x.isupper()})
SINGULAR = {*GRAMMAR["PERSON"], *GRAMMAR["ITEM"]}  # nouns
PLURAL = {*GRAMMAR["PEOPLE"], *GRAMMAR["ITEMS"]}
IDS = {word: i for i, word in enumerate(VOCABULARY)}


def sample(rng: random.Random, grammar: Grammar = GRAMMAR) -> tuple[list[str], float]:
    """Return the words of a random paragraph, and -ln of its probability, in nats."""
    name = rng.choice(list(NAMES))
    memory = dict(zip(("FIRST", "SECOND", "THIRD"), rng.sample(LOAD, 3), strict=True))
    memory |= {"NAME": name, "PRONOUN": NAMES[name]}
    words, nats, symbols = [], math.log(MEMORIES), ["PARAGRAPH"]
    while symbols:
        symbol = symbols.pop()
        if symbol not in grammar:
            words.append(memory.get(symbol, symbol))
            continue
        (rule,) = rng.choices(list(grammar[symbol]), list(grammar[symbol].values()))
        nats -= math.log(grammar[symbol][rule])
        symbols += reversed(rule.split(" "))
    return words, nats


def expected(symbol: str, grammar: Grammar = GRAMMAR) -> tuple[float, float]:
    """Return the entropy in nats of what a symbol becomes, and its mean number of tokens.

    The entropy of the choice, plus those of the chosen rule's parts. It is exact, because no text
    has two derivations. A paragraph's name and list add ln(MEMORIES).
    """
    if symbol not in grammar:
        return 0.0, 1.0
    nats, tokens = math.log(MEMORIES) if symbol == "PARAGRAPH" else 0.0, 0.0
    for rule, p in grammar[symbol].items():
        below = [expected(part, grammar) for part in rule.split(" ")]
        nats += p * (sum(n for n, _ in below) - math.log(p))
        tokens += p * sum(t for _, t in below)
    return nats, tokens


def encode(words: Sequence[str]) -> Tensor:
    """Return the ids of words, (T,)."""
    return torch.tensor([IDS[word] for word in words])


def text_ids(num_tokens: int, seed: int, grammar: Grammar = GRAMMAR) -> Tensor:
    """Return the first tokens of a random text, (num_tokens,)."""
    rng, words = random.Random(seed), list[str]()
    while len(words) < num_tokens:
        words += sample(rng, grammar)[0]
    return encode(words[:num_tokens])


def paragraph_windows(ids: Tensor, length: int) -> Tensor:
    """Return windows (N, length + 1), each from the line break before a paragraph."""
    ids = torch.cat([encode(["\n"]), ids])
    starts = (ids[:-length] == IDS["\n"]).nonzero()  # (N, 1)
    return ids[starts + torch.arange(length + 1)]


def spell(words: Sequence[str]) -> str:
    """Return words as readable text."""
    text = re.sub(r" ([.,\n])", r"\1", " ".join(words))
    return re.sub(r"(?:^|(?<=\. )|(?<=\n ))[a-z]", lambda first: first[0].upper(), text).strip()


def sentences(words: Sequence[str]) -> list[list[str]]:
    """Return the sentences of a text, without line breaks. The last one may lack its full stop."""
    text = " ".join(word for word in words if word != "\n")
    return [line.split() for line in re.findall(r"[^.]*\.|[^.]+$", text)]


def _pattern(symbol: str) -> str:
    # A regular expression for what a symbol becomes. NAME, FIRST and the like stay as they are.
    if symbol not in GRAMMAR:
        return re.escape(symbol)
    rules = (" ".join(map(_pattern, rule.split(" "))) for rule in GRAMMAR[symbol])
    return f"(?:{'|'.join(rules)})"


_PATTERNS = {symbol: re.compile(_pattern(symbol)) for symbol in ("OPENING", "REPORT", "ENDING")}


def judge(paragraph: Sequence[str]) -> list[bool]:
    """Return for each sentence of a paragraph whether it is grammatical in its place.

    The first has to be an opening, the last an ending with the opening's list in its order, and
    names and pronouns have to be the opening's.
    """
    lines = sentences(paragraph)
    opening = lines[0] if lines else []
    memory = {word: "NAME" for word in opening if word in NAMES}
    memory |= {NAMES[name]: "PRONOUN" for name in memory}
    memory |= zip((w for w in opening if w in LOAD), ("FIRST", "SECOND", "THIRD"), strict=False)

    def is_right(symbol: str, line: Sequence[str]) -> bool:
        text = " ".join(memory.get(word, word) for word in line)
        return bool(_PATTERNS[symbol].fullmatch(text))

    if not is_right("OPENING", opening):
        memory.clear()  # nothing to refer to
    symbols = ["OPENING", *["REPORT"] * (len(lines) - 2), "ENDING"]
    return [is_right(*pair) for pair in zip(symbols, lines, strict=False)]
