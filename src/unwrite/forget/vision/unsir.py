"""UNSIR: break a class with noise that the model finds least like it, then repair what else broke.

Noise is learnt against the frozen model until it is as far from the class as it gets; training on it under the class's
own label impairs the class, and an epoch on retain rows alone repairs the others. No image of the class is looked at.
(Fast yet effective machine unlearning, arXiv 2111.08947, algorithm 1)

    N_c = argmin_N  - mean_i CE(f_o(N_i), c) + 0.1 * mean_i sum(N_i^2);   impair on {(N_c, c)} u D_r', repair on D_r'

The authors' models take normalised pixels, so N is in units of the retain pixels' deviation around their mean, channel
by channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.images.images import Images, first_few
from ...errors import DataError, NotFinite
from ...models.curvature import evaluating
from ...models.vision_layout import logits_of
from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.classes import need_classes, whole_classes
from ..engine.images.schedules import another
from ..engine.images.work import ImageWork
from ..engine.loss import Loss
from ..engine.phase import Phase
from ..engine.stream import permutation

__all__ = ["UNSIR", "noise_loss"]

_NOISE, _ROWS = 13, 14  # keep these draws apart from others of the same seed


def noise_loss(logits: Tensor, noise: Tensor, label: int, penalty: float) -> Tensor:
    """What the noise is learnt by, a scalar: minus the mean cross-entropy, plus the penalty's share of the mean squared norm.

    Args:
        logits: of the frozen model, `[rows, classes]`.
        noise: `[rows, channels, height, width]`
        label: the class to get away from.
        penalty: of the squared norm, >= 0.
    """
    target = torch.full((len(logits),), label, device=logits.device)
    return penalty * noise.square().flatten(1).sum(1).mean() - F.cross_entropy(logits.float(), target)


@dataclass(frozen=True, kw_only=True)
class UNSIR(Objective[ImageWork]):
    """Impairs whole classes with learnt noise and repairs the rest.

    The arguments' learning rate and epochs are the impairment's; the repair has as many epochs and an optimiser of its own.

    Args:
        noise_rows: images of noise for every class.
        noise_steps: of Adam that learn them.
        noise_lr: its learning rate, > 0.
        penalty: of the noise's squared norm, >= 0.
        copies: how often each image of noise stands in the impairing set; all of them are used.
        per_class: retain rows of each class to impair and repair with, drawn by the seed; all where there are fewer.
        repair_rate: learning rate of the repair in that of the impairment, >= 0.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {
        "optim": "adam",
        "learning_rate": 0.02,
        "weight_decay": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 256,
    }
    noise_rows: int = 256
    noise_steps: int = 40
    noise_lr: float = 0.1
    penalty: float = 0.1
    copies: int = 20
    per_class: int = 1000
    repair_rate: float = 0.5

    def __post_init__(self) -> None:
        for name in ("noise_rows", "copies", "per_class"):
            require(name, getattr(self, name), at_least=1)
        for name in ("noise_steps", "penalty", "repair_rate"):
            require(name, getattr(self, name), at_least=0)
        require("noise_lr", self.noise_lr, above=0)

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        labels = need_classes(self, forget)
        if whole_classes(forget, retain):
            return
        both = [forget.classes[int(c)] for c in labels.unique() if bool((need_classes(self, retain) == c).any())]
        raise DataError(
            f"UNSIR forgets whole classes, and the retain set still has rows of {first_few(both)}. Split by class, or take "
            "another method."
        )

    def loss(self, batch: PairedImages) -> Loss:
        """Cross-entropy of all rows of a step together, noise with the label of its class."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """Impair, on noise and retain rows in one order; repair, on the retain rows alone."""
        retain = _some_of_each(work.retained, self.per_class, work.args.seed)
        noise = self.noise(work)
        return [
            Phase("union", self.loss, forget=noise, retain=retain),
            Phase("retain", self.loss, retain=retain, optimiser=another(work.args), lr=self.repair_rate),
        ]

    def noise(self, work: ImageWork) -> Images:
        """The impairing images `[classes forgotten * copies * noise_rows, ...]`, labelled; their pixels have no bounds."""
        assert work.forget.labels is not None
        shift, scale = _normalisation(work.retained)
        classes = work.forget.labels.unique().tolist()
        pixels, labels = [], []
        for label in classes:
            learnt = shift + scale * self._learnt(work, label, shift, scale)
            pixels.append(learnt.repeat(self.copies, 1, 1, 1))
            labels.append(torch.full((len(pixels[-1]),), label))
        names = -1 - torch.arange(sum(map(len, labels)))
        tensors: dict[str, Any] = {"pixels": torch.cat(pixels), "labels": torch.cat(labels), "index": names}
        return work.forget._made({**tensors, "identity": None}, "noise")

    def _learnt(self, work: ImageWork, label: int, shift: Tensor, scale: Tensor) -> Tensor:
        """N, `[noise_rows, channels, height, width]`, in normalised units, on the CPU."""
        seed = abs(work.args.seed)
        shape = (self.noise_rows, *work.forget.shape)
        drawn = np.random.default_rng([seed, _NOISE, label]).standard_normal(shape, dtype=np.float32)
        noise = torch.from_numpy(drawn).to(work.device).requires_grad_()
        shift, scale = shift.to(work.device), scale.to(work.device)
        optimiser = torch.optim.Adam([noise], lr=self.noise_lr)
        with evaluating(work.model):
            for _ in range(self.noise_steps):
                logits = logits_of(work.model, shift + scale * noise)
                (noise.grad,) = torch.autograd.grad(noise_loss(logits, noise, label, self.penalty), [noise])
                optimiser.step()
        work.cost.add(self.noise_rows * self.noise_steps, 1, 0.5)  # the half of a backward that leads to the pixels
        if not bool(torch.isfinite(noise).all()):
            raise NotFinite(f"the noise of class {label} stopped being finite. Lower noise_lr={self.noise_lr:g}.")
        return noise.detach().cpu()


def _normalisation(rows: Images) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the pixels, each `[1, channels, 1, 1]`; a channel that never varies has deviation 1."""
    deviation, mean = torch.std_mean(rows.pixels, (0, 2, 3), correction=0, keepdim=True)
    return mean, torch.where(deviation > 0, deviation, 1.0)


def _some_of_each(rows: Images, most: int, seed: int) -> Images:
    """At most so many rows of each class, in the set's order."""
    assert rows.labels is not None
    mask = torch.zeros(len(rows), dtype=torch.bool)
    for label in rows.labels.unique().tolist():
        at = (rows.labels == label).nonzero()[:, 0]
        mask[at[torch.from_numpy(permutation(len(at), seed, _ROWS, label)[:most])]] = True
    return rows.where(mask)
