"""Masked-diffusion language models: one denoising loop, made of parts that compose.

    Sampler(commit=Threshold(0.9), cache="dual")(model, tokenizer, prompts)

Nothing here imports torch until a name is used.
"""

from ..catalog.packages import lazily

__getattr__, __dir__ = lazily(__name__)
