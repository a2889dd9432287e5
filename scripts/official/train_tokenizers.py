"""Trains the two tokenizers of tests/audit/published/tokenizers on the published rows beside them.

    python scripts/official/train_tokenizers.py

They are files, not made by the tests, so that the stored official numbers hold whatever a later version would train.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.audit.published_models import BOS, EOS, PUBLISHED, published_files, rows_of, strings  # noqa: E402

SIZE = 1000
TAGS = [
    "[INST] Who is it? [/INST]",
    "Question: Who is it?\nAnswer: It is she.\n\n",
    "\nA. yes\nB. no\nC. so\nD. or\nAnswer: A",
]


def byte_level() -> Tokenizer:
    """Byte-level pieces; the blank before a word is part of it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [BOS, EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def blank_marking() -> Tokenizer:
    """Pieces that begin with the mark of a blank, one put before each text, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = [BOS, EOS, "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, initial_alphabet=["▁"], show_progress=False)
    pieces = [piece for text in _texts() for line in text.split("\n") for piece in line.replace(" ", " ▁").split(" ")]
    tokenizer.train_from_iterator(pieces, trainer)
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    return tokenizer


def _texts() -> list[str]:
    rows = [text for file in published_files() for row in rows_of(file) for text in strings(row)]
    return [*rows, *TAGS * 20]


def main() -> None:
    folder = PUBLISHED / "tokenizers"
    folder.mkdir(exist_ok=True)
    for name, tokenizer in (("bytes", byte_level()), ("blanks", blank_marking())):
        stored = json.loads(tokenizer.to_str())
        # The trainer makes special tokens of the bytes, which texts would lose with them.
        stored["added_tokens"] = [token for token in stored["added_tokens"] if not token["content"].startswith("<0x")]
        (folder / f"{name}.json").write_text(json.dumps(stored, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{name}: {tokenizer.get_vocab_size()} pieces")


if __name__ == "__main__":
    main()
