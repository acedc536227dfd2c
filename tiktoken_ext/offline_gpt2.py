"""GPT-2's tokenizer for tiktoken, from dataset/gpt2-bpe, without a download or a cache.

tiktoken imports all modules of the namespace package `tiktoken_ext` before it makes its first
encoding. So `tiktoken.get_encoding("gpt2")` uses these tables wherever the project's folder is on
the import path. utils.py also imports this module, in case the first encoding already exists.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken.registry
import tiktoken_ext.openai_public as openai

TABLES = Path(__file__).parents[1] / "dataset" / "gpt2-bpe"
SHA256 = {
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def read_table(name: str) -> bytes:
    """Return the content of one of GPT-2's two tables. Raises ValueError if it is damaged."""
    content = (TABLES / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ValueError(f"{TABLES / name} is damaged: `git restore dataset` brings it back")
    return content


def gpt2() -> dict[str, Any]:
    """Return the arguments of `tiktoken.Encoding` for GPT-2's tokenizer."""
    # vocab.json writes each byte of a token as one visible character: the byte's own in Latin-1,
    # or the next unused character from 256 on.
    visible = [*range(ord("!"), 127), *range(ord("¡"), 173), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
    ids = json.loads(read_table("vocab.json"))
    special_tokens = {openai.ENDOFTEXT: ids.pop(openai.ENDOFTEXT)}
    ranks = {bytes(byte_of[character] for character in token): i for token, i in ids.items()}
    return {
        "name": "gpt2", "explicit_n_vocab": 50257, "pat_str": openai.r50k_pat_str,
        "mergeable_ranks": ranks, "special_tokens": special_tokens,
    }  # fmt: skip


# Replace tiktoken's own constructor, even if tiktoken has already collected it. (It would refuse
# a second "gpt2" in this module's ENCODING_CONSTRUCTORS.)
ENCODING_CONSTRUCTORS: dict[str, Callable[[], dict[str, Any]]] = {}
for constructors in (openai.ENCODING_CONSTRUCTORS, tiktoken.registry.ENCODING_CONSTRUCTORS or {}):
    if "gpt2" in constructors:
        constructors["gpt2"] = gpt2
