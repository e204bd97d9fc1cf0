"""A tokenizer for random networks, which come without one: words are hashed to ids."""

from __future__ import annotations

import re
import zlib
from itertools import zip_longest

PAD, CLS, SEP, FIRST = 0, 1, 2, 3


class HashTokenizer:
    """Lower-cased words and punctuation marks -> ids from 3 to vocab - 1; [CLS] a [SEP] (b [SEP])."""

    pad_token_id, eos_token_id = PAD, SEP

    def __init__(self, vocab: int):
        self.vocab = vocab

    def __call__(
        self, texts, pairs=None, max_length: int = 1 << 30, add_special_tokens: bool = True, **options
    ) -> dict[str, list[list[int]]]:
        """Token ids and segment ids of each text, or pair of texts; the longer of a pair is cut first."""
        ids, types = [], []
        for first, second in zip_longest(texts, pairs or []):
            a, b = self._words(first), None if second is None else self._words(second)
            if not add_special_tokens:
                ids.append(a)
                types.append([0] * len(a))
                continue
            special = 2 if b is None else 3
            while len(a) + len(b or ()) > max_length - special:
                (a if b is None or len(a) >= len(b) else b).pop()
            ids.append([CLS, *a, SEP] + ([] if b is None else [*b, SEP]))
            types.append([0] * (len(a) + 2) + ([] if b is None else [1] * (len(b) + 1)))
        return {"input_ids": ids, "token_type_ids": types}

    def decode(self, ids: list[int], **options) -> str:
        """Ids as words `t17 t5`: what was hashed cannot be had back."""
        return " ".join(f"t{token}" for token in ids)

    def _words(self, text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return [FIRST + zlib.crc32(word.encode()) % (self.vocab - FIRST) for word in words]
