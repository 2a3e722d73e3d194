"""From instruction to token ids: what a prompt looks like, what does not fit, and where the vocabulary comes from."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import sentencepiece
import vocabulary
from hypothesis import example, given
from hypothesis import strategies as st

from hotpolicy.runtime.errors import BadRequest, BundleError
from hotpolicy.runtime.tokenizer import SentencePieceTokenizer, WordTokenizer, tokenizer_from_dict
from hotpolicy.runtime.transforms import FORMATS, Prompt
from hotpolicy.runtime.transforms.prompt import state_bins

SENTENCEPIECE = SentencePieceTokenizer(
    "tokenizer.model", 256, sentencepiece.SentencePieceProcessor(model_proto=vocabulary.train())
)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(vocabulary.train())
    return path


def read(tokenizer: SentencePieceTokenizer, ids: np.ndarray, mask: np.ndarray) -> str:
    return tokenizer.processor.decode(ids[mask].tolist())


def test_pi0_begins_and_ends_as_it_was_trained(model):
    tokenizer = SentencePieceTokenizer.load(model, 48)
    ids, mask = tokenizer.encode(*Prompt("pi0").pieces("  pick_up\nthe red cube ", np.zeros(2)))
    processor = tokenizer.processor
    assert ids[0] == processor.bos_id() == 2
    assert ids[mask][-1] == processor.encode("\n")[0]
    assert ids[mask][1:-1].tolist() == processor.encode("pick up the red cube")
    assert (ids.shape, ids.dtype, mask.dtype) == ((48,), np.int64, bool)
    assert (ids[~mask] == 0).all()
    assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_pi05_writes_the_state_into_the_prompt(model):
    tokenizer = SentencePieceTokenizer.load(model, 200)
    state = np.array([-1.2, -1.0, -0.9999, 0.0, 0.5, 1.0, 7.0], np.float32)
    (text,) = Prompt("pi05").pieces("pick_up the cube ", state)
    assert text == "Task: pick up the cube, State: -1 0 0 128 192 255 255;\nAction: "
    assert read(tokenizer, *tokenizer.encode(text)) == text


def test_named_formats_differ_as_they_say():
    state, task = np.zeros(2, np.float32), "pick_up "
    pieces = {name: Prompt(name).pieces(task, state) for name in FORMATS}
    assert pieces == {
        "words": ("pick_up ",),
        "pi0": ("pick up", "\n"),
        "pi0_lerobot": ("pick_up \n",),
        "pi05": ("Task: pick up, State: 128 128;\nAction: ",),
        "pi05_padded": ("Task: pick up, State: 128 128;\nAction: ",),
    }
    assert Prompt("pi0_lerobot").pieces("go\n", state) == ("go\n",)
    assert [name for name in FORMATS if Prompt(name).reads_state] == ["pi05", "pi05_padded"]
    with pytest.raises(BundleError, match=r"transforms.prompt: expected one of words, .*, got 'pi06'"):
        Prompt("pi06")


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=9))
def test_a_bin_is_where_the_value_is(values):
    """256 bins over [-1, 1]: the value lies between its bin's edges; beyond the ends it is in -1 or 255."""
    for value, bin_ in zip(values, state_bins(np.array(values, np.float32)), strict=True):
        assert bin_ == min(max(floor((Fraction(value) + 1) * 128), -1), 255)


def test_a_prompt_that_is_too_long_is_refused_not_cut(model):
    task = "pick up the red cube"
    pieces = Prompt("pi0").pieces(task, np.zeros(1))
    length = int(SentencePieceTokenizer.load(model, 48).encode(*pieces)[1].sum())
    assert SentencePieceTokenizer.load(model, length).encode(*pieces)[1].all()  # exactly full
    with pytest.raises(BadRequest, match=rf"task: expected at most {length - 1} tokens, got {length}.*red cube"):
        SentencePieceTokenizer.load(model, length - 1).encode(*pieces)


@given(st.text(max_size=60))
@example("▁")
def test_any_text_is_encoded_whole(text):
    """Bytes stand in for what no piece spells, so that nothing an operator types is lost. SentencePiece's own
    sign for a space is one."""
    ids, mask = SENTENCEPIECE.encode(text)
    assert read(SENTENCEPIECE, ids, mask) == text.replace("▁", " ")
    assert 0 <= ids.min() <= ids.max() < SENTENCEPIECE.vocabulary


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("task", ["", "  \n "])
def test_an_instruction_without_a_word_is_refused(format_, task):
    with pytest.raises(BadRequest, match="task: expected an instruction of at least one word"):
        Prompt(format_).pieces(task, np.zeros(1))


def test_words_take_any_prompt():
    tokenizer = WordTokenizer(64, 12)
    ids, mask = tokenizer.encode(*Prompt("pi05").pieces("lift it", np.zeros(2)))
    assert mask.sum() == 7  # task: lift it, state: 128 128; action:
    assert ids[mask].all()


def test_where_a_missing_vocabulary_is_had_is_said(tmp_path):
    entry = {"kind": "sentencepiece", "file": "tokenizer.model", "max_tokens": 48}
    with pytest.raises(BundleError, match=r"No such file.*huggingface.co/google/paligemma-3b-pt-224.*gs://"):
        SentencePieceTokenizer.load(tmp_path / "tokenizer.model", 48)
    with pytest.raises(BundleError, match=r"tokenizer.file: tokenizer.model: expected.*paligemma"):
        tokenizer_from_dict(entry)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, vocabulary.train()[:500]])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content, capfd):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="not a sentencepiece model"):
        SentencePieceTokenizer.load(path, 48)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": 1}, "tokenizer.max_tokens: expected at least 2, got 1"),
        ({"max_tokens": "48"}, "tokenizer.max_tokens"),
        ({"file": 3}, "tokenizer.file: expected a name, got 3"),
        ({"more": 3}, "tokenizer: expected kind, file and max_tokens"),
        ({"kind": "letters"}, "tokenizer.kind: expected 'words' or 'sentencepiece', got 'letters'"),
    ],
)
def test_a_bad_entry_is_named(change, named):
    entry = {"kind": "sentencepiece", "file": "tokenizer.model", "max_tokens": 48}
    with pytest.raises(BundleError, match=named):
        tokenizer_from_dict({**entry, **change})


def test_an_entry_survives(model):
    tokenizer = SentencePieceTokenizer.load(model, 48)
    assert tokenizer.to_dict() == {"kind": "sentencepiece", "file": "tokenizer.model", "max_tokens": 48}
    assert dataclasses.replace(tokenizer, max_tokens=9).to_dict()["max_tokens"] == 9
    assert tokenizer.vocabulary == vocabulary.SIZE
