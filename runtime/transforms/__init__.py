"""Between a robot's observations and a model's tensors: one definition for serving and for training.

Each step is a small frozen object with `forward` and `inverse` side by side; `Transforms` puts them in order. Numbers
that belong together travel together: these live in the bundle's manifest, and swap with the weights.
"""

from hotpolicy.runtime.transforms.images import ImageSlots, resize_with_pad
from hotpolicy.runtime.transforms.normalise import Normalise, Normaliser, Quantile
from hotpolicy.runtime.transforms.prompt import FORMATS, Prompt
from hotpolicy.runtime.transforms.relative import Relative
from hotpolicy.runtime.transforms.transforms import Transforms
from hotpolicy.runtime.transforms.width import Width

__all__ = [
    "FORMATS",
    "ImageSlots",
    "Normalise",
    "Normaliser",
    "Prompt",
    "Quantile",
    "Relative",
    "Transforms",
    "Width",
    "resize_with_pad",
]
