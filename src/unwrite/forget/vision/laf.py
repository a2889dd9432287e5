"""Label-agnostic forgetting: forget features leave what was learnt of them, without a label of anything.

One small VAE learns how features of the data are spread, another how those of the forget set are. The extractor moves
so that the first keeps reconstructing retain features and the second no longer forget features; a step of alignment to
the model before holds the directions of retain features. (LAF, arXiv 2404.00506, eqs. 5-9)

    L_UE = sum_r phi(|h(e_r) - e_r|^2) - sum_f phi(|h_f(e_f) - e_f|^2),   phi(m) = exp(m / (m + 1))
    L_RA = sum_r log(exp(c_r) / sum_f exp(c_f / tau)),                    c = 1 - cos(e, e of the model before)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import DataError, MethodError, notice, unknown
from ...nets.feature_vae import DecoderOut, FeatureVAE, Reconstruction
from ...runs import progress
from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import ImagePart, PairedImages, outputs_loss
from ..engine.images.whole_step import WholeStep, row_normals
from ..engine.images.work import ImageWork, frozen
from ..engine.loss import Loss, PerRow
from ..engine.phase import Phase
from ..engine.stream import permutation

__all__ = ["LAF", "alignment_loss", "cosine_distance", "extractor_loss", "fit_feature_vae", "saturating", "vae_loss"]

_BATCH = 32
_OF_ALL, _OF_FORGET, _TRAINING = 21, 22, 23  # what noise is drawn for


def saturating(error: Tensor) -> Tensor:
    """phi = exp(m / (m + 1)) of squared errors m >= 0: from 1 at 0 to e at infinity."""
    return torch.exp(1 - 1 / (1 + error))  # m / (m + 1) itself has no value at infinity


def squared_error(seen: Reconstruction) -> Tensor:
    """|v(e) - e|^2, `[rows]`."""
    return (seen.output - seen.target).square().sum(1)


def extractor_loss(retain_error: Tensor, forget_error: Tensor) -> Tensor:
    """L_UE of squared reconstruction errors `[retain rows]` under h and `[forget rows]` under h_f, a scalar."""
    return saturating(retain_error).sum() - saturating(forget_error).sum()


def cosine_distance(features: Tensor, before: Tensor) -> Tensor:
    """1 - cos of each row's features and those of the model before; both `[rows, dim]`, result `[rows]`, 0 to 2."""
    return 1 - F.cosine_similarity(features, before, dim=1, eps=1e-8)


def alignment_loss(retain_distance: Tensor, forget_distance: Tensor, tau: float) -> Tensor:
    """L_RA = sum_r c_r - B_r log sum_f exp(c_f / tau) of distances `[retain rows]` and `[forget rows]`, a scalar."""
    return retain_distance.sum() - len(retain_distance) * torch.logsumexp(forget_distance / tau, 0)


def vae_loss(seen: Reconstruction, kl_weight: float = 0.025) -> Tensor:
    """Squared error and `kl_weight` times the KL to a standard normal, each the mean over rows; a scalar."""
    kl = -0.5 * (torch.log(seen.sigma.square() + 1e-8) + 1 - seen.mu.square() - seen.sigma.square()).sum(1)
    return squared_error(seen).mean() + kl_weight * kl.mean()


def fit_feature_vae(
    features: Tensor,
    index: Tensor,
    seed: int,
    *,
    latent: int = 8,
    decoder_out: DecoderOut = "sigmoid",
    epochs: int = 10,
    lr: float = 1e-3,
) -> FeatureVAE:
    """A `FeatureVAE` of features `[rows, dim]`, trained by Adam in batches of 32; frozen, in evaluation mode.

    Args:
        index: the rows' names, by which the noise of each is drawn.
        seed: of the weights, the order and the noise.

    Raises:
        DataError: features that are not finite.
    """
    if not bool(features.isfinite().all()):
        row = int(index[int((~features.isfinite()).any(1).nonzero()[0])])
        raise DataError(f"the features of row {row} are not finite. Give a model that was trained well.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = FeatureVAE(features.shape[1], latent, decoder_out).to(features.device)
    vae.standardise(features)
    optimiser = torch.optim.Adam(vae.parameters(), lr=lr)
    for epoch in progress(range(epochs), "training an autoencoder"):
        order = torch.from_numpy(permutation(len(features), seed, _TRAINING, epoch)).to(features.device)
        noise = row_normals(index, latent, seed, _TRAINING, epoch)
        for rows in order.split(_BATCH):
            optimiser.zero_grad()
            vae_loss(vae(features[rows], noise[rows])).backward()
            optimiser.step()
    optimiser.zero_grad()
    return frozen(vae)


@dataclass(frozen=True, eq=False)
class Unlearning:
    """The two losses of one application, with the VAEs they go by.

    Args:
        of_all, of_forget: h and h_f; nothing trains them any more.
        tau, seed: see `LAF`.
    """

    of_all: FeatureVAE
    of_forget: FeatureVAE
    tau: float
    seed: int

    def extractor(self, batch: PairedImages) -> Loss:
        """L_UE. The noise of a row is a function of (seed, epoch, row)."""
        retain = squared_error(self._seen(self.of_all, batch["retain"], _OF_ALL))
        forget = squared_error(self._seen(self.of_forget, batch["forget"], _OF_FORGET))
        logs = {"retain_error": retain.detach().mean(), "forget_error": forget.detach().mean()}
        return Loss(logs, extractor=WholeStep(extractor_loss(retain, forget)))

    def alignment(self, batch: PairedImages) -> Loss:
        """L_RA."""
        distance = {name: self._distance(part) for name, part in batch.present()}
        return Loss({}, alignment=WholeStep(alignment_loss(distance["retain"], distance["forget"], self.tau)))

    def _seen(self, vae: FeatureVAE, part: ImagePart, what: int) -> Reconstruction:
        assert part.features is not None
        noise = row_normals(part.index, vae.latent, self.seed, what, part.epoch)
        seen: Reconstruction = vae(part.features.float(), noise)
        return seen

    @staticmethod
    def _distance(part: ImagePart) -> Tensor:
        assert part.features is not None
        assert part.reference_features is not None
        return cosine_distance(part.features.float(), part.reference_features.float())


@dataclass(frozen=True, kw_only=True)
class LAF(Objective[ImageWork]):
    """Label-agnostic forgetting; with `repair`, the paper's LAF+R. An epoch has as many steps as the smaller set has batches.

    Learning rates are fields, for there are two; `learning_rate`, `optim`, `momentum` and `weight_decay` of the arguments
    aren't used. Labels and targets are never read, except those of the retain set where there is a repair. The VAEs'
    own passes, on features alone, aren't counted as cost.

    Args:
        extractor_lr, alignment_lr: Adam's for L_UE and L_RA, >= 0; 5e-5 and 1e-4 for a CNN on MNIST, 1e-5 and 4e-5 for
            a ResNet-18 on CIFAR-10.
        tau: temperature of the forget distances, > 0; 20 for classes, 5 for random rows of MNIST.
        latent: dimensions of the VAEs' codes; 8, and 16 for a ResNet.
        decoder_out: "sigmoid", or "linear" on standardised features, see `FeatureVAE`.
        vae_data: what h learns: "all" (the published approximation, forget rows among them) or "retain".
        vae_epochs: passes of the VAEs' training.
        repair: trains the head on labelled retain rows afterwards.
        repair_epochs, repair_lr: of the repair, by Adam.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    reads: ClassVar[frozenset[str]] = frozenset({"features", "reference features", "retain"})
    training: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 20,
        "per_device_train_batch_size": _BATCH,
        "optim": "adam",
        "weight_decay": 0.0,
        "mode": "eval",
    }
    extractor_lr: float = 5e-5
    alignment_lr: float = 1e-4
    tau: float = 20.0
    latent: int = 8
    decoder_out: DecoderOut = "sigmoid"
    vae_data: Literal["all", "retain"] = "all"
    vae_epochs: int = 10
    repair: bool = False
    repair_epochs: int = 1
    repair_lr: float = 1e-3

    def __post_init__(self) -> None:
        require("tau", self.tau, above=0)
        require("latent", self.latent, at_least=1)
        for name in ("extractor_lr", "alignment_lr", "vae_epochs", "repair_epochs", "repair_lr"):
            require(name, getattr(self, name), at_least=0)
        for name, allowed in (("decoder_out", ("sigmoid", "linear")), ("vae_data", ("all", "retain"))):
            if getattr(self, name) not in allowed:
                raise MethodError(unknown(name, str(getattr(self, name)), allowed))

    def loss(self, batch: PairedImages) -> Loss:
        """The loss of the repair. batch.retain: the ordinary loss; the losses that forget are those of `Unlearning`."""
        return Loss({}, repair=PerRow(outputs_loss(batch["retain"]), "retain"))

    def phases(self, work: ImageWork) -> list[Phase]:
        """Trains the VAEs; then steps of L_UE and L_RA in turn, each with moments of its own; then the repair."""
        size = work.args.per_device_train_batch_size
        if len(work.forget) < size:
            notice(
                f"the forget set has {len(work.forget)} rows, fewer than a batch of {size}: an epoch is one step. "
                "Train longer, or in smaller batches.",
            )
        stream: Literal["paired", "covering"] = "paired" if len(work.forget) <= len(work.retained) else "covering"
        losses = self._unlearning(work, work.args.seed)
        align = Phase(stream, losses.alignment, partial(torch.optim.Adam, lr=self.alignment_lr))
        phases = [Phase(stream, losses.extractor, partial(torch.optim.Adam, lr=self.extractor_lr), then=align)]
        if self.repair:
            head = list(work.layout.head_module.parameters())
            phases.append(Phase(stream, self.loss, partial(_adam_on, head, self.repair_lr), epochs=self.repair_epochs))
        return phases

    def _unlearning(self, work: ImageWork, seed: int) -> Unlearning:
        forget, retain = (work.features(work.model, rows).float() for rows in (work.forget, work.retained))
        known: dict[str, tuple[list[Tensor], list[Images]]] = {
            "all": ([retain, forget], [work.retained, work.forget]),
            "retain": ([retain], [work.retained]),
            "forget": ([forget], [work.forget]),
        }

        def fit(name: str) -> FeatureVAE:
            features, rows = known[name]
            index = torch.cat([part.index for part in rows]).to(work.device)
            how: dict[str, Any] = {"latent": self.latent, "decoder_out": self.decoder_out, "epochs": self.vae_epochs}
            return fit_feature_vae(torch.cat(features), index, seed, **how)

        return Unlearning(fit(self.vae_data), fit("forget"), self.tau, seed)


def _adam_on(chosen: Sequence[nn.Parameter], lr: float, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Adam on those of the trainable parameters that are among the chosen."""
    ids = {id(one) for one in chosen}
    mine = [one for one in parameters if id(one) in ids]
    if not mine:
        raise MethodError("no parameter of the head is to be trained, so there is nothing to repair. Leave out repair.")
    return torch.optim.Adam(mine, lr=lr)
