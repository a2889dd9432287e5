"""Oracle matching: fine-tune the model to say what models retrained without the forget set say.

It needs what unlearning is to save, so it is no way to unlearn: it shows how close matching on a few rows can come, and
whether a datamodel's predictions or the matching itself falls short. (OM, arXiv 2410.23232)

    t(x) = mean over oracles of f(x; theta_oracle),   theta <- argmin mean_x |f(x; theta) - t(x)|^2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data.images.images import Images
from ...errors import MethodError
from ...models.image_training import fitted_many
from ..engine.checks import require
from ..engine.images.matching import Matching
from ..engine.images.work import ImageWork, frozen

__all__ = ["OracleMatching"]


@dataclass(frozen=True, kw_only=True)
class OracleMatching(Matching):
    """Fine-tunes to the mean outputs of retrained models, which are trained by the recipe once and found again.

    Args:
        oracles: retrained models whose outputs are averaged, from seeds that follow that of the training arguments.
    """

    requires: ClassVar[tuple[str, ...]] = ("retain", "recipe")
    training: ClassVar[dict[str, Any]] = {
        **Matching.training,
        "learning_rate": 5e-4,
        "num_train_epochs": 13,
        "per_device_train_batch_size": 256,
    }
    oracles: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("oracles", self.oracles, at_least=1)

    def targets(self, work: ImageWork, rows: Mapping[str, Images]) -> dict[str, Tensor]:
        """The mean outputs of the retrained models, in evaluation mode.

        Raises:
            ModelError: the recipe makes another architecture.
        """
        if work.recipe is None:
            raise MethodError("OracleMatching retrains models. Give the recipe that trained this one.")
        jobs = [(range(len(work.retained)), work.args.seed + number) for number in range(self.oracles)]
        models = [frozen(model.to(work.device)) for model in fitted_many(work.recipe, work.retained, jobs)]
        for model in models:
            work.layout.of(model)
        return {name: torch.stack([work.outputs(m, one) for m in models]).mean(0) for name, one in rows.items()}
