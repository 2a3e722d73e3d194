"""Auxiliary losses for pretraining a small policy: where is each colour, and where is the object the words name.

Without them a network of this size never learns to look (the same recipe reached 0.07 instead of 1.00); with them
it learns in minutes. They need positions that only a simulator knows, and are dropped after pretraining.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotpolicy.runtime.tokenizer import WordTokenizer


class Localiser(nn.Module):
    """Two linear readouts of image tokens: a cell and an offset inside it, per colour and for the named object."""

    def __init__(self, width: int, tokens: int, colours: int):
        super().__init__()
        self.side = math.isqrt(tokens)
        self.colours = nn.Linear(width, colours * 3)
        self.named = nn.Linear(width, 3)
        line = torch.linspace(-1, 1, self.side)
        down, right = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("grid", torch.stack([right, down], -1).view(tokens, 2), persistent=False)

    def forward(
        self, features: Tensor, hidden: Tensor, places: Tensor, present: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """features and hidden (batch, tokens, width), places (batch, colours, 2) in 0..1, present (batch, colours)
        bool, target (batch,) index of the named colour -> loss, mean error of the named object in cells."""
        rows = torch.arange(len(features))
        each = self.colours(features).unflatten(-1, (-1, 3)).transpose(1, 2)
        loss, _ = self._locate(each, places, present.float())
        named = self.named(hidden)[:, None]
        loss_named, error = self._locate(named, places[rows, target][:, None], torch.ones(len(rows), 1))
        return loss + loss_named, error.mean() * self.side / 2

    def _locate(self, read: Tensor, places: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """read (batch, things, tokens, 3): a logit for the cell and an offset; -> loss and (batch, things) error."""
        cell = (places * self.side).long().clamp(0, self.side - 1)
        index = cell[..., 1] * self.side + cell[..., 0]
        logits = read[..., 0]
        grid: Tensor = self.grid  # type: ignore[assignment]
        guess = (grid + read[..., 1:] * 2 / (self.side - 1)).mul(logits.softmax(-1)[..., None]).sum(-2)
        error = (guess - (places * 2 - 1)).abs().sum(-1)
        cross = F.cross_entropy(logits.flatten(0, 1), index.flatten(), reduction="none").view(index.shape)
        return ((cross + 4 * error) * weight).sum() / weight.sum(), error


class Babbler:
    """Random words around "the COLOUR cube": the prefix must find the object whatever the verb will be."""

    def __init__(self, tokenizer: WordTokenizer, colours: tuple[str, ...]):
        self.tokenizer = tokenizer
        self.colours = [tokenizer.word(colour) for colour in colours]
        self.the, self.cube, self.block = (tokenizer.word(word) for word in ("the", "cube", "block"))

    def speak(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """target (batch,) colour index -> tokens and mask (batch, max_tokens)."""
        tokens = torch.zeros(len(target), self.tokenizer.max_tokens, dtype=torch.long)
        for row, colour in enumerate(target.tolist()):
            words = self._sentence(self.colours[colour])[: self.tokenizer.max_tokens]
            tokens[row, : len(words)] = torch.tensor(words)
        return tokens, tokens > 0

    def _sentence(self, colour: int) -> list[int]:
        before, after = torch.randint(0, 3, (2,)).tolist()
        words = [self._any() for _ in range(before + (0 if torch.rand(1) < 0.2 else 1))]
        if torch.rand(1) < 0.85:
            words.append(self.the)
        words.append(colour)
        draw = float(torch.rand(1))
        if draw < 0.9:
            words.append(self.cube if draw < 0.6 else self.block if draw < 0.75 else self._any())
        return words + [self._any() for _ in range(after)]

    def _any(self) -> int:
        return int(torch.randint(1, self.tokenizer.vocabulary, (1,)))
