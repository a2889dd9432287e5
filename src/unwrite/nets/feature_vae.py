"""A small variational autoencoder of feature vectors, the measure of how familiar a representation is (arXiv 2404.00506).

    encoder  dim - 128 - 32 - (mu, log variance)      decoder  latent - 32 - 128 - dim

The published decoder ends in a sigmoid, whose outputs lie in 0..1 while features don't; "linear" standardises features
and reaches all of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError, unknown

__all__ = ["DecoderOut", "FeatureVAE", "Reconstruction"]

DecoderOut = Literal["sigmoid", "linear"]


class Reconstruction(NamedTuple):
    """What a `FeatureVAE` makes of features.

    Args:
        output: the reconstruction, `[rows, dim]`.
        target: what it should be: the features as they are, standardised for "linear"; `[rows, dim]`.
        mu, sigma: mean and standard deviation of the latent, `[rows, latent]`.
    """

    output: Tensor
    target: Tensor
    mu: Tensor
    sigma: Tensor


class FeatureVAE(nn.Module):
    """A variational autoencoder of feature vectors.

    Args:
        dim: of the features.
        latent: of the code.
        decoder_out: "sigmoid" (published), or "linear" on standardised features.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, latent: int = 8, decoder_out: DecoderOut = "sigmoid") -> None:
        super().__init__()
        if dim < 1 or latent < 1:
            raise ModelError(f"a VAE of {dim} features and {latent} latent dimensions can't be built. Give 1 or more.")
        if decoder_out not in ("sigmoid", "linear"):
            raise ModelError(unknown("decoder output", str(decoder_out), ("sigmoid", "linear")))
        self.dim, self.latent, self.decoder_out = dim, latent, decoder_out
        self.encoder = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.mu, self.log_variance = nn.Linear(32, latent), nn.Linear(32, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, dim)
        )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Takes mean and standard deviation of features `[rows, dim]`, for "linear"; "sigmoid" leaves features alone."""
        if self.decoder_out == "linear":
            self.mean.copy_(features.mean(0))
            spread = features.std(0, correction=0)
            # A unit that never fires has no spread to divide by.
            self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, features: Tensor, noise: Tensor) -> Reconstruction:
        """Features `[rows, dim]`; noise, standard normal, `[rows, latent]`: z = mu + sigma * noise.

        Raises:
            ModelError: shapes that don't fit.
        """
        if features.shape[1:] != (self.dim,) or noise.shape != (len(features), self.latent):
            raise ModelError(
                f"this VAE takes features [rows, {self.dim}] with noise [rows, {self.latent}], not "
                f"{list(features.shape)} with {list(noise.shape)}. Build one for these features."
            )
        target = (features - self.mean) / self.scale
        hidden = self.encoder(target)
        mu, sigma = self.mu(hidden), torch.exp(0.5 * self.log_variance(hidden))
        output = self.decoder(mu + sigma * noise)
        return Reconstruction(F.sigmoid(output) if self.decoder_out == "sigmoid" else output, target, mu, sigma)
