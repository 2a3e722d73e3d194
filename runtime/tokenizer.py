"""Text to token ids. The nano preset hashes words, so that any word has an id and no vocabulary file is needed; the
published models read PaliGemma's sentencepiece pieces."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hotpolicy.runtime.errors import BadRequest, BundleError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from hotpolicy.runtime.bundle import Bundle

KINDS = {"words": ("vocabulary", "max_tokens"), "sentencepiece": ("file", "max_tokens")}  # kind -> its other fields
WHERE = (
    "PaliGemma's tokenizer.model may not be passed on with a policy: accept its licence and take it from "
    "https://huggingface.co/google/paligemma-3b-pt-224, or from gs://big_vision/paligemma_tokenizer.model"
)


class Tokenizer(Protocol):
    @property
    def max_tokens(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...  # ids are below it

    def encode(self, *pieces: str) -> tuple[np.ndarray, np.ndarray]:
        """-> ids (max_tokens,) int64 and mask (max_tokens,) bool. Raises BadRequest for a text that is too long."""

    def to_dict(self) -> dict[str, Any]: ...


class SideFiles(Protocol):
    """A bundle, or what stands for one: side files by name."""

    def file(self, name: str) -> Path: ...  # raises BundleError when there is none, or it was altered


@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """Word -> 1 + crc32 modulo (vocabulary - 1); 0 is padding."""

    vocabulary: int
    max_tokens: int
    kind: str = "words"

    def encode(self, *pieces: str) -> tuple[np.ndarray, np.ndarray]:
        """Raises BadRequest for an empty or too long text."""
        text = " ".join(pieces)
        words = text.lower().split()
        if not words:
            raise BadRequest("task: expected an instruction of at least one word, got none")
        if len(words) > self.max_tokens:
            raise BadRequest(f"task: expected at most {self.max_tokens} words, got {len(words)}: {text!r}")
        return _padded([self.word(word) for word in words], self.max_tokens)

    def word(self, word: str) -> int:
        return 1 + zlib.crc32(word.encode()) % (self.vocabulary - 1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SentencePieceTokenizer:
    """The beginning-of-sequence token, then the pieces of each text; 0 is padding, on the right."""

    file: str  # name of the side file that holds the sentencepiece model
    max_tokens: int
    processor: SentencePieceProcessor
    kind: str = "sentencepiece"

    @classmethod
    def load(cls, path: Path, max_tokens: int) -> SentencePieceTokenizer:
        """Raises BundleError for a file that is missing (and says where it is had) or not a sentencepiece model."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"tokenizer: {path}: {error.strerror}. {WHERE}") from error
        return cls(path.name, max_tokens, _processor(content, path))

    @property
    def vocabulary(self) -> int:
        return int(self.processor.vocab_size())

    def encode(self, *pieces: str) -> tuple[np.ndarray, np.ndarray]:
        """Raises BadRequest for a text of more than `max_tokens` tokens: nothing is cut."""
        ids = [self.processor.bos_id()]
        for piece in pieces:
            ids.extend(self.processor.encode(piece))
        if len(ids) > self.max_tokens:
            text = "".join(pieces)
            raise BadRequest(
                f"task: expected at most {self.max_tokens} tokens, got {len(ids)}, all that the prompt adds among "
                f"them: {text if len(text) <= 200 else text[:200] + '…'!r}"
            )
        return _padded(ids, self.max_tokens)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "file": self.file, "max_tokens": self.max_tokens}


@dataclass(frozen=True, slots=True)
class Inherited:
    """Side files of a version: its own, or else its parent's."""

    own: Bundle
    parent: SideFiles | None

    def file(self, name: str) -> Path:
        if self.parent is not None and name not in self.own.manifest.files:
            return self.parent.file(name)
        return self.own.file(name)

    @classmethod
    def of_chain(cls, chain: Sequence[Bundle]) -> SideFiles | None:
        files: SideFiles | None = None
        for bundle in chain:
            files = cls(bundle, files)
        return files


def tokenizer_from_dict(data: Mapping[str, Any], files: SideFiles | None = None) -> Tokenizer:
    """Raises BundleError for a kind this version does not know, and for a side file that is not there."""
    if not isinstance(data, Mapping):
        raise BundleError(f"tokenizer: expected a mapping, got {data!r:.80}")
    kind = data.get("kind")
    if kind not in KINDS:
        raise BundleError(f"tokenizer.kind: expected {' or '.join(map(repr, KINDS))}, got {kind!r}")
    if set(data) != {"kind", *KINDS[kind]}:
        raise BundleError(f"tokenizer: expected kind, {' and '.join(KINDS[kind])}, got {sorted(data)}")
    for count in ("vocabulary", "max_tokens"):
        if count in data and (type(data[count]) is not int or data[count] < 2):
            raise BundleError(f"tokenizer.{count}: expected at least 2, got {data[count]!r}")
    if kind == "words":
        return WordTokenizer(**data)
    name, budget = data["file"], data["max_tokens"]
    if not isinstance(name, str):
        raise BundleError(f"tokenizer.file: expected a name, got {name!r}")
    if files is None:
        raise BundleError(f"tokenizer.file: {name}: expected beside the policy. {WHERE}")
    try:
        path = files.file(name)
    except BundleError as error:
        raise BundleError(f"tokenizer.file: {error}. {WHERE}") from error
    return SentencePieceTokenizer.load(path, budget)


def _processor(content: bytes, path: Path) -> SentencePieceProcessor:
    try:
        from sentencepiece import SentencePieceProcessor  # late: policies that hash words do not need it
    except ImportError as error:
        raise BundleError("tokenizer: needs sentencepiece: pip install 'hotpolicy[server]'") from error
    if not content:  # which the library would take for a model of nothing
        raise BundleError(f"tokenizer: {path}: not a sentencepiece model: the file is empty")
    try:
        processor = SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise BundleError(f"tokenizer: {path}: not a sentencepiece model") from error
    if processor.bos_id() < 0:
        raise BundleError(f"tokenizer: {path}: this sentencepiece model has no beginning-of-sequence token")
    return processor


def _padded(ids: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.zeros(length, np.int64)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)
