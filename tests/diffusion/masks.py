"""Mask predictors for tests: random bidirectional Llamas, and models whose logits are written down."""

from types import SimpleNamespace

import torch

from helpers import tiny
from helpers.tiny import END, MASK, VOCAB, make_mask_predictor
from unwrite.diffusion import MaskPredictor


def random_predictor(seed=0, sharpness=6.0, shift=False):
    """A random Llama of 24 tokens that sees both sides; the last token is the mask. sharpness: factor on its head."""
    model = make_mask_predictor(seed)
    with torch.no_grad():
        model.lm_head.weight *= sharpness
    return MaskPredictor(model, MASK, (END,), shift=shift)


def lively(seed=0, sharpness=1.0, shift=False):
    """As `random_predictor`, with larger weights: confidences spread from 0 to 1 and change with every token revealed."""
    return MaskPredictor(tiny.lively(make_mask_predictor(seed), sharpness), MASK, (END,), shift=shift)


class Scripted:
    """logits(canvas [rows, length]) -> [rows, length, vocab]; counts its forwards and notes what it saw."""

    def __init__(self, logits, vocab=VOCAB):
        self.inner, self.seen = logits, []
        self.config = SimpleNamespace(vocab_size=vocab)

    def __call__(self, input_ids, attention_mask=None, **more):
        self.seen.append(input_ids.clone())
        return SimpleNamespace(logits=self.inner(input_ids))


def scripted(logits, mask_id=MASK, end_ids=(END,), **more):
    return MaskPredictor(Scripted(logits), mask_id, end_ids, probe=False, **more)


def rows_of(table):
    """Logits that do not depend on the canvas: table [length, vocab]."""
    table = torch.as_tensor(table)
    return scripted(lambda canvas: table[: canvas.shape[1]].expand(len(canvas), -1, -1).clone())


def confident(tokens, confidences, vocab=VOCAB, mask_id=MASK):
    """[length, vocab] logits with these tokens at these probabilities, the rest spread over all others but the mask."""
    p = torch.full((len(tokens), vocab), 0.0, dtype=torch.float64)
    for row, (token, sure) in enumerate(zip(tokens, confidences, strict=True)):
        p[row] = (1 - sure) / (vocab - 2)
        p[row, token] = sure
    p[:, mask_id] = 0.0
    return p.log()


def prompts_of(*lengths, seed=0):
    """Prompts of these lengths without mask and end tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, MASK, (length,), generator=generator).tolist() for length in lengths]
