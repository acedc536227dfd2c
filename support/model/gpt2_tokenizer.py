"""GPT-2's tokenizer, the only one in this project, as files of a Hugging Face model."""

import json
from pathlib import Path
from typing import Any

from support.checks import InputError
from support.files import read_json
from tiktoken_ext.offline_gpt2 import SHA256, read_table

OTHER_TOKENIZERS = ("vocab.txt", "spiece.model", "tokenizer.model")  # BERT's, SentencePiece's
END_OF_TEXT = 50256  # the last token id


def tokenizer_files(cfg: dict[str, Any]) -> dict[str, bytes]:
    """Return the tokenizer's files by name; none if the vocabulary is smaller than GPT-2's."""
    if cfg["vocab_size"] <= END_OF_TEXT:
        return {}
    names = ("bos_token", "eos_token", "unk_token")
    config = {"model_max_length": cfg["context_length"]} | dict.fromkeys(names, "<|endoftext|>")
    tables = {name: read_table(name) for name in SHA256}
    return {"tokenizer_config.json": json.dumps(config, indent=2).encode(), **tables}


def check_tokenizer(folder: Path) -> None:
    """Raise ValueError if the folder contains a tokenizer other than GPT-2's."""
    other = [name for name in OTHER_TOKENIZERS if (folder / name).exists()]
    ours = json.loads(read_table("vocab.json"))
    for name in ("vocab.json", "tokenizer.json"):
        if (folder / name).exists():
            vocab: Any = read_json(folder / name)
            if name == "tokenizer.json":
                model = vocab.get("model")
                vocab = model.get("vocab") if isinstance(model, dict) else None
            if vocab != ours:
                other.append(name)
    if other:
        raise InputError(
            f"{folder} has a tokenizer other than GPT-2's ({other[0]}): use a model that was "
            "trained with GPT-2's tokenizer"
        )
