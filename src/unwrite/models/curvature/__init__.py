"""How much every parameter of a model matters to some data: the importances that dampening, masks and noise go by.

    batch's   I_i = mean_batches (d mean_rows loss / d theta_i)^2        SSD, LFSSD, ASSD, Potion, SalUn's sum
    row's     I_i = mean_rows (d loss / d theta_i)^2                     empirical Fisher information
    fisher    F_i = mean_rows sum_y p(y|x) (d CE(f(x), y) / d theta_i)^2 Fisher forgetting

The first is smaller than the second by about the batch size; they are different quantities. `passes.py` has them;
`rows.py` gets every row's own gradient from one backward a batch, by what `recording.py` saw in the forward and the
formulas of `uses.py`; `result.py` keeps the result; `losses.py` has the usual losses.
"""

from .losses import cross_entropy, logit_norm, next_token, outputs, squared_error, squared_logit_norm
from .passes import fisher, importances, importances_with_forget, row_gradients
from .result import Importances, stored
from .rows import Loss, evaluating, trainable

__all__ = [
    "Importances",
    "Loss",
    "cross_entropy",
    "evaluating",
    "fisher",
    "importances",
    "importances_with_forget",
    "logit_norm",
    "next_token",
    "outputs",
    "row_gradients",
    "squared_error",
    "squared_logit_norm",
    "stored",
    "trainable",
]
