"""Camera images into the model's image slots: resized whole, centred on black, and a mask for slots without one.

The picture is made smaller with Pillow's bilinear filter, as openpi's client and data pipeline do: bit for bit the
same. It averages over all the pixels it leaves out. LeRobot resizes inside its policy with torch's bilinear, which
reads four pixels per output pixel and skips the rest; on detailed pictures the two differ visibly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotpolicy.runtime.errors import BundleError


@dataclass(frozen=True, slots=True)
class ImageSlots:
    """The model's image inputs, in order, each with the camera that fills it or None.

    A slot without a camera is a zero image that the mask hides; an engine does not compute it."""

    slots: tuple[str | None, ...]
    size: int | None = None  # pixels, height and width of the model's images; None: they come in the cameras' own size
    resize: str = "none"  # "pad": any picture is fitted into `size`; "none": it must have that size already

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those that fill a slot, in order."""
        return tuple(slot for slot in self.slots if slot is not None)

    def fit(self, images: np.ndarray) -> np.ndarray:
        """(..., height, width, 3) uint8 -> the same at the model's size."""
        return images if self.size is None or self.resize == "none" else resize_with_pad(images, self.size, self.size)

    def fill(self, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images of `cameras` that were fitted, (batch, cameras, size, size, 3) -> (batch, slots, size, size, 3) and
        the mask (batch, slots) bool."""
        used = np.array([slot is not None for slot in self.slots])
        mask = np.tile(used, (len(fitted), 1))
        if used.all():
            return fitted, mask
        filled = np.zeros((len(fitted), len(used), *fitted.shape[2:]), np.uint8)
        filled[:, used] = fitted
        return filled, mask

    def forward(self, seen: Sequence[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures by camera name, one mapping per observation -> images and mask of the slots, as `fill`."""
        return self.fill(np.stack([np.stack([self.fit(images[name]) for name in self.cameras]) for images in seen]))

    def to_dict(self) -> dict[str, Any]:
        return {"size": self.size, "resize": self.resize, "slots": list(self.slots)}

    @classmethod
    def from_dict(cls, data: object) -> ImageSlots:
        """The manifest's `transforms.images`. Raises BundleError naming the field that is wrong."""
        if not isinstance(data, Mapping) or set(data) != {"size", "resize", "slots"}:
            raise BundleError(f"transforms.images: expected size, resize and slots, got {data!r:.80}")
        size, resize, slots = data["size"], data["resize"], data["slots"]
        if type(size) is not int or not 1 <= size <= 4096:
            raise BundleError(f"transforms.images.size: expected pixels, 1 to 4096, got {size!r}")
        if resize not in ("pad", "none"):
            raise BundleError(f"transforms.images.resize: expected 'pad' or 'none', got {resize!r}")
        if not isinstance(slots, list) or not all(slot is None or isinstance(slot, str) for slot in slots):
            raise BundleError(f"transforms.images.slots: expected camera names or null, got {slots!r}")
        named = [slot for slot in slots if slot is not None]
        if not named or len(set(named)) < len(named):
            raise BundleError(f"transforms.images.slots: expected at least one camera, and each once, got {slots!r}")
        return cls(tuple(slots), size, resize)


def resize_with_pad(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., h, w, 3) uint8 -> (..., height, width, 3) uint8: the whole picture, its shape kept, centred on black."""
    if images.shape[-3:-1] == (height, width):
        return images
    h, w = images.shape[-3:-1]
    ratio = max(w / width, h / height)
    rows, columns = max(1, int(h / ratio)), max(1, int(w / ratio))
    top, left = (height - rows) // 2, (width - columns) // 2
    flat = images.reshape(-1, h, w, 3)
    padded = np.zeros((len(flat), height, width, 3), np.uint8)
    for source, target in zip(flat, padded, strict=True):
        target[top : top + rows, left : left + columns] = _smaller(source, rows, columns)
    return padded.reshape(*images.shape[:-3], height, width, 3)


def _smaller(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    from PIL import Image  # late: a policy whose cameras have its own size needs no Pillow

    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((columns, rows), Image.Resampling.BILINEAR))
