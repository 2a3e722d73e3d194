"""Instructions to token ids. The nano preset hashes words: any word has an id, and no vocabulary file is needed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hotpolicy.runtime.errors import BadRequest, BundleError


@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """Word -> 1 + crc32 modulo (vocabulary - 1); 0 is padding."""

    vocabulary: int
    max_tokens: int
    kind: str = "words"

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """-> ids (max_tokens,) int64 and mask (max_tokens,) bool. Raises BadRequest for an empty or too long text."""
        words = text.lower().split()
        if not words:
            raise BadRequest("task: expected an instruction of at least one word, got none")
        if len(words) > self.max_tokens:
            raise BadRequest(f"task: expected at most {self.max_tokens} words, got {len(words)}: {text!r}")
        ids = np.zeros(self.max_tokens, np.int64)
        ids[: len(words)] = [self.word(word) for word in words]
        return ids, np.arange(self.max_tokens) < len(words)

    def word(self, word: str) -> int:
        return 1 + zlib.crc32(word.encode()) % (self.vocabulary - 1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tokenizer_from_dict(data: Mapping[str, Any]) -> WordTokenizer:
    """Raises BundleError for a kind this version does not know."""
    if data.get("kind") != "words":
        raise BundleError(f"tokenizer.kind: expected 'words', got {data.get('kind')!r}")
    return WordTokenizer(**data)
