"""The change of a name's hidden state that makes a model begin its answer with a given text.

It is what ROME and MEMIT call computing z: a vector is added behind one block at the name's last token, in several
prompts at once, and trained while the weights stay. (arXiv 2202.05262, 2210.07229; settings of arXiv 2506.07795)

    mean_c nll(text | prompt_c) + a KL(p_now || p_before at the name in another prompt) + b ||delta|| / ||h||^2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....runs import progress
from ....scoring.likelihood import logits_at
from .named_prompts import NamedPrompt, changed_outputs, padded, states_at

__all__ = ["Steering"]


@dataclass(frozen=True)
class Steering:
    """How the vector is trained.

    Args:
        steps: forwards, the last of which only looks.
        rate: Adam's learning rate.
        kl_weight: of the KL term, a.
        decay: of the length term, b.
        clamp: the vector's greatest length, in lengths of the hidden state.
        stop: the loss from which it is good enough, in nats.
    """

    steps: int
    rate: float
    kl_weight: float
    decay: float
    clamp: float
    stop: float

    def towards(
        self, model: nn.Module, prompts: Sequence[NamedPrompt], other: NamedPrompt, text: Sequence[int], layer: int
    ) -> Tensor:
        """The vector, `[hidden]`, float32.

        Args:
            prompts: those whose answer shall begin with `text`.
            other: the prompt whose next token behind the name shall stay as it is.
            text: token ids.
            layer: the block behind which the vector is added.
        """
        rows = [NamedPrompt((*prompt.ids, *text[:-1]), prompt.position) for prompt in prompts] + [other]
        ids, mask, positions = padded(rows, next(model.parameters()).device)
        where = torch.zeros_like(ids, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            where[i, len(prompt.ids) - 1 : len(prompt.ids) - 1 + len(text)] = True
        where[-1, other.position] = True
        each, number = torch.arange(len(rows), device=ids.device), len(prompts)
        wanted = torch.tensor(list(text) * number, device=ids.device)
        start = states_at(model, prompts[:1], (), layer).output[0]  # [hidden]
        length = start.norm()
        before: Tensor | None = None
        with _still(model), torch.enable_grad():
            delta = torch.zeros_like(start, requires_grad=True)
            optimiser = torch.optim.Adam([delta], lr=self.rate)

            def shifted(states: Tensor) -> Tensor:
                states = states.clone()
                states[each, positions] += delta.to(states.dtype)
                return states

            for step in progress(range(self.steps), "steering the name"):
                with changed_outputs(model, layer, shifted):
                    logits, _ = logits_at(model, ids, mask, where)
                log_p = logits.float().log_softmax(-1)
                now = log_p[-1]
                before = now.detach() if before is None else before
                nll = -log_p[:-1].gather(1, wanted[:, None]).mean()
                loss = nll + self.kl_weight * (now.exp() * (now - before)).sum()
                loss = loss + self.decay * delta.norm() / length**2
                if float(loss.detach()) < self.stop or step == self.steps - 1:
                    break
                (delta.grad,) = torch.autograd.grad(loss, delta)
                optimiser.step()
                with torch.no_grad():
                    delta *= min(1.0, float(self.clamp * length / delta.norm().clamp(min=1e-12)))
        return delta.detach()


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Within the block no weight takes a gradient, and the model is in evaluation mode."""
    flags, was_training = [(p, p.requires_grad) for p in model.parameters()], model.training
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.train(was_training)
