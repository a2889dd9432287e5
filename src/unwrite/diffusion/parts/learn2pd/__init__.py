"""Learn2PD: a tiny filter learns which predictions are final already (arXiv 2509.25188).

The model's own one-token-a-step text says, forward by forward, which predictions were right before they were revealed. A net
of 2112 weights learns that from a block's confidences alone and takes the threshold's place:

    z = filter(c_1 .. c_B)        reveal i where sigmoid(z_i) > theta, and the surest

EoTP cuts the canvas behind the end token, so that no forward computes padding. `records` makes the data, `filter` learns,
`decoding` uses it.
"""

from .decoding import EoTP, LearnedSelect
from .filter import Filter, FilterQuality, FilterReport, judge, safe_bar, train
from .records import Oracle, Records, collect

__all__ = [
    "EoTP",
    "Filter",
    "FilterQuality",
    "FilterReport",
    "LearnedSelect",
    "Oracle",
    "Records",
    "collect",
    "judge",
    "safe_bar",
    "train",
]
