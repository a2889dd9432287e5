"""The rotary scaling of Llama 3.1 and later, which a GGUF holds as a table where other formats name its four numbers.

llama.cpp divides the frequency of each pair of columns by a factor from `rope_freqs.weight`; transformers' reader drops
that table, and the model would answer wrongly from the first far position on. The table is a function of

    f(w) = 1                                  for wavelengths w below   original / high
         = factor                             above                     original / low
         = 1 / ((1 - s) / factor + s)         between,  s = (original / w - low) / (high - low)

so the numbers are tried that published models have, and taken where they give the table back.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["TABLE", "llama3_factors", "rope_parameters"]

TABLE = "rope_freqs.weight"
_ORIGINAL = (8192, 4096, 16384, 32768, 2048)
_LOW_HIGH = ((1.0, 4.0), (1.0, 8.0), (1.0, 2.0))
_CLOSE = 1e-4  # the table is in float32


def rope_parameters(table: np.ndarray, config: PreTrainedConfig) -> dict[str, Any] | None:
    """The `rope_parameters` that give this table of factors, `[head width / 2]`; None where none are known to.

    A table of ones scales nothing: then the parameters are the configuration's own.
    """
    own = dict(config.rope_parameters)
    factors = np.asarray(table, dtype=np.float64).reshape(-1)
    if np.allclose(factors, 1, atol=_CLOSE):
        return own
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if len(factors) != width // 2 or own.get("rope_type", "default") != "default":
        return None
    factor = float(factors.max())
    for original, (low, high) in itertools.product(_ORIGINAL, _LOW_HIGH):
        expected = llama3_factors(float(own["rope_theta"]), width, factor, low, high, original)
        if np.allclose(expected, factors, rtol=_CLOSE, atol=0):
            return {
                **own,
                "rope_type": "llama3",
                "factor": round(factor, 4),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    return None


def llama3_factors(theta: float, width: int, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """What each frequency is divided by, `[width / 2]`."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength < original / high, 1.0, np.where(wavelength > original / low, factor, between))
