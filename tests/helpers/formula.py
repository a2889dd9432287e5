"""Weights by a formula, so that numbers of other code can be compared without storing its weights."""

import torch
from torch import nn


def filled(module: nn.Module) -> nn.Module:
    """The module with parameter n, entry k set to 0.3 sin(0.7 k + n), or for vectors (but the first parameter) 1 + 0.1 sin(k + n)."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            k = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
            vector = parameter.ndim == 1 and number
            parameter.copy_(1 + 0.1 * torch.sin(k + number) if vector else 0.3 * torch.sin(0.7 * k + number))
    return module
