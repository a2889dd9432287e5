"""A detector of prompts that flags Ann's name, and a model whose prompts ECO corrupts where it does."""

from dataclasses import dataclass

import numpy as np

from conftest import make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.forget import CalibratedDetector, CorruptedPromptModel, PromptDetector
from unwrite.forget.engine.text.corrupted_prompts import CorruptionRules
from unwrite.forget.engine.text.corruptions import Corruption


@dataclass(frozen=True)
class Naming(PromptDetector):
    """Flags texts that name Ann."""

    name = "naming"

    def fit(self, forget, retain, seed=0):
        return self

    def __call__(self, texts):
        return np.array([float("ann" in text.split()) for text in texts])

    def state(self):
        return {}, {}

    @classmethod
    def of_state(cls, tensors, settings, source):
        return cls()


def guarded(strength=5.0, threshold=0.5, detector=None, name="rand_noise_first_n", dims=1, target=None, **rules):
    rules = CorruptionRules(Corruption(name, strength, dims), **rules)
    check = CalibratedDetector(detector or Naming(), threshold)
    return CorruptedPromptModel(target or lively(make_llama(0)), check, make_tokenizer(), rules)
