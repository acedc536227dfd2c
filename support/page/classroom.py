"""Classes: a teacher's page asks for the next word of its text, and the learners' pages guess it.

Each page asks for the state of its class every second or so. So a page may join late, reload or
lose its connection. Classes exist only in memory. A class ends with its teacher's session, which
Chainlit deletes ten minutes (`session_timeout`) after the teacher's page is closed.
"""

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import chainlit as cl

MAX_WORDS = 300  # different words, and guesses, for a question
MAX_LENGTH = 40  # characters of a word
MAX_OPTIONS = 6
# The model's probabilities of words after token ids; None if a newer request replaced this one
WordProbs = Callable[[list[int], list[str]], Awaitable[list[float] | None]]


@dataclass
class Question:
    ids: list[int]  # the text before the word
    text: str
    options: list[str]  # to choose from
    wrote: str  # the word in the teacher's text
    pause: int  # its index there, for the teacher's page
    probs: dict[str, float] = field(default_factory=dict)  # the model's, by word
    guesses: dict[str, str] = field(default_factory=dict)  # by the secret name of a page
    revealed: bool = False
    number: int = field(default_factory=count().__next__)


@dataclass(eq=False)
class Classroom:
    code: str  # which learners type
    teacher: str  # the secret name of the teacher's page
    question: Question

    def view(self, page: str) -> dict[str, Any]:
        """Return the class as this page may see it: learners must guess before they see bars."""
        asked, teaching = self.question, page == self.teacher
        counts = Counter(asked.guesses.values())
        words = sorted({*asked.options, asked.wrote, *counts}, key=lambda word: -asked.probs[word])
        shown = asked.revealed and (teaching or page in asked.guesses)
        return {
            "code": self.code, "number": asked.number, "text": asked.text, "pause": asked.pause,
            "teaching": teaching, "options": asked.options, "guesses": len(asked.guesses),
            "full": MAX_WORDS in (len(asked.guesses), len(asked.probs)),
            "mine": asked.guesses.get(page), "wrote": asked.wrote if shown or teaching else None,
            "ids": asked.ids if teaching else None,
            "bars": [{"word": word, "count": counts[word], "prob": asked.probs[word]}
                     for word in words] if shown else None,
        }  # fmt: skip


classrooms: WeakValueDictionary[str, Classroom] = WeakValueDictionary()  # by code


def read_word(raw: Any) -> str:
    """Return a word without surrounding or repeated spaces. Raises ValueError if it is empty."""
    valid = str(raw)[:MAX_LENGTH].encode(errors="replace").decode()  # without surrogates
    if not (word := " ".join(valid.split())):
        raise ValueError("an empty word")
    return word


def read_question(payload: dict[str, Any], ids: list[int], text: str) -> Question:
    """Return a teacher's question about the word after `ids`, whose text is `text`."""
    options = [read_word(word) for word in payload["options"][:MAX_OPTIONS]]
    return Question(ids, text, options, read_word(payload["wrote"]), int(payload["pause"]))


async def ask(teacher: str, question: Question, word_probs: WordProbs) -> Classroom | None:
    """Ask this teacher's class, created if needed; return it, or None after a newer question."""
    words = [*question.options, question.wrote]
    if (probs := await word_probs(question.ids, words)) is None:
        return None
    question.probs = dict(zip(words, probs, strict=True))
    for classroom in list(classrooms.values()):
        if classroom.teacher == teacher:
            classroom.question = question
            return classroom
    while (code := str(secrets.randbelow(90_000) + 10_000)) in classrooms:
        pass
    classroom = classrooms[code] = Classroom(code, teacher, question)
    return classroom


async def guess(asked: Question, page: str, word: str, word_probs: WordProbs) -> None:
    """Store a guess. Until the guesses are revealed, it replaces the page's earlier one."""
    if word not in asked.probs:
        probs = await word_probs(asked.ids, [word])
        if probs and len(asked.probs) < MAX_WORDS:
            (asked.probs[word],) = probs
    is_new = page not in asked.guesses
    if word in asked.probs and (len(asked.guesses) < MAX_WORDS if is_new else not asked.revealed):
        asked.guesses[page] = word


async def take_part(
    payload: dict[str, Any], question: Question | None, word_probs: WordProbs
) -> dict[str, Any] | None:
    """Ask `question`, guess or reveal, as a page's payload says; return its class, if any."""
    page, classroom = str(payload["page"])[:100], classrooms.get(str(payload.get("code")))
    if question:
        classroom = await ask(page, question, word_probs)
    elif classroom and "guess" in payload and payload.get("number") == classroom.question.number:
        await guess(classroom.question, page, read_word(payload["guess"]), word_probs)
    elif classroom and payload.get("reveal") and page == classroom.teacher:
        classroom.question.revealed = True
    if classroom and page == classroom.teacher:
        cl.user_session.set("classroom", classroom)  # the only strong reference
    return classroom.view(page) if classroom else None
