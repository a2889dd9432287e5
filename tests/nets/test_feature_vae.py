"""The VAE of features: which features its decoder can reach, and how its code is drawn."""

import pytest
import torch

from unwrite.errors import ModelError
from unwrite.nets.feature_vae import FeatureVAE


def test_the_code_is_the_mean_plus_the_noise_times_the_spread():
    torch.manual_seed(0)
    vae, features, noise = FeatureVAE(6, 2), torch.rand(3, 6), torch.randn(3, 2)
    seen = vae(features, noise)
    expected = torch.sigmoid(vae.decoder(seen.mu + seen.sigma * noise))
    torch.testing.assert_close(seen.output, expected)
    assert (seen.sigma > 0).all()
    assert not torch.equal(seen.output, vae(features, -noise).output)


def test_a_linear_decoder_works_on_standardised_features():
    torch.manual_seed(0)
    features = 50 + 9 * torch.randn(200, 5)
    features[:, 2] = 3.0  # a dead unit
    vae = FeatureVAE(5, 3, "linear")
    vae.standardise(features)
    seen = vae(features, torch.zeros(200, 3))
    torch.testing.assert_close(seen.target.mean(0), torch.zeros(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.target.std(0, correction=0), torch.tensor([1.0, 1, 0, 1, 1]), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        vae.decoder[-1].bias.fill_(-30.0)
    assert vae(features, torch.zeros(200, 3)).output.max() < -20


def test_a_sigmoid_decoder_leaves_features_as_they_are():
    features = 50 + torch.randn(20, 5)
    vae = FeatureVAE(5, 3)
    vae.standardise(features)
    seen = vae(features, torch.zeros(20, 3))
    assert torch.equal(seen.target, features)
    assert ((seen.output >= 0) & (seen.output <= 1)).all()


def test_refuses_what_does_not_fit():
    with pytest.raises(ModelError, match=r"this VAE takes features \[rows, 5\] with noise \[rows, 2\]"):
        FeatureVAE(5, 2)(torch.zeros(3, 4), torch.zeros(3, 2))
    with pytest.raises(ModelError, match=r"a VAE of 0 features and 2 latent dimensions can't be built"):
        FeatureVAE(0, 2)
    with pytest.raises(ModelError, match="unknown decoder output 'tanh'"):
        FeatureVAE(4, 2, "tanh")
