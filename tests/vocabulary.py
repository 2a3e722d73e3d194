"""A sentencepiece vocabulary as PaliGemma's is made, but of 512 pieces, trained from a few sentences in no time."""

from __future__ import annotations

import io
from functools import cache

import sentencepiece

SIZE = 512
SENTENCES = (
    "pick up the red cube", "put the cup on the plate", "open the top drawer", "fold the towel",
    "Task: touch the green block, State: 0 12 255 128 64 77 200 31;", "Action: ", "close the gripper slowly",
    "wipe the table with the sponge", "stack three bowls", "hand me the screwdriver", "move left, then right",
)  # fmt: skip


@cache
def train() -> bytes:
    """The model file. Pad 0, end 1, begin 2, unknown 3; bytes for what no piece spells; digits alone; no space put in
    front of a text; the newline a piece of its own: PaliGemma's settings."""
    numbers = [f"State: {' '.join(str(7 * i * j % 256) for j in range(9))};" for i in range(80)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES * 20, *numbers]),
        model_writer=model,
        model_type="bpe",
        vocab_size=SIZE,
        hard_vocab_limit=True,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        user_defined_symbols=["<mask>", "\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
