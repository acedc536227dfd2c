"""GPT-2's tokenizer, the only one of this project, as files beside a model of Hugging Face's."""

import json
from pathlib import Path
from typing import Any

from support.files import read_json

TABLES = Path(__file__).parents[2] / "dataset" / "gpt2-bpe"  # under the names tiktoken gives
VOCAB, MERGES = "vocab.json", "merges.txt"  # their names in such a folder
TABLE = {
    VOCAB: "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    MERGES: "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
}
OF_OTHERS = ("vocab.txt", "spiece.model", "tokenizer.model")  # of BERT's kind, of SentencePiece
END_OF_TEXT = 50256  # the last of the token ids


def tokenizer_files(cfg: dict[str, Any]) -> dict[str, bytes]:
    """Return the contents of the files, by name; none for a model without ids for all tokens."""
    if cfg["vocab_size"] <= END_OF_TEXT:
        return {}
    names = ("bos_token", "eos_token", "unk_token")
    config = {"model_max_length": cfg["context_length"]} | dict.fromkeys(names, "<|endoftext|>")
    tables = {name: (TABLES / table).read_bytes() for name, table in TABLE.items()}
    return {"tokenizer_config.json": json.dumps(config, indent=2).encode(), **tables}


def check_tokenizer(folder: Path) -> None:
    """Raise ValueError if there is another tokenizer: the model's ids would be other tokens."""
    other = [name for name in OF_OTHERS if (folder / name).exists()]
    ours = read_json(TABLES / TABLE[VOCAB])
    for name in (VOCAB, "tokenizer.json"):
        if (folder / name).exists():
            vocab: Any = read_json(folder / name)
            if name != VOCAB:
                model = vocab.get("model")
                vocab = model.get("vocab") if isinstance(model, dict) else None
            if vocab != ours:
                other.append(name)
    if other:
        raise ValueError(
            f"{folder} has another tokenizer than GPT-2's ({other[0]}), and this project has none "
            "but that: take a model that was trained with it"
        )
