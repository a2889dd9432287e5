"""The small model and rows on which official code was run: closed forms, so that no random state matters."""

import torch
from torch import Tensor, nn

from unwrite.data import Images

CLASSES = 3


def wave(*shape: int, step: float, start: float = 0.0) -> Tensor:
    """sin(start), sin(start + step), ... in a shape; float32 of values computed in float64."""
    count = torch.Size(shape).numel()
    return torch.sin(start + step * torch.arange(count, dtype=torch.float64)).reshape(shape).float()


def wave_net() -> nn.Module:
    """Pixels `[rows, 1, 8, 8]` to three logits, in evaluation mode."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, CLASSES)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(0.4 * wave(*parameter.shape, step=1.3 + 0.1 * number, start=number))
    return net


def wave_images() -> Images:
    """Ten rows; their labels are what the net answers, and for the last two another."""
    pixels = 0.5 + 0.5 * wave(10, 1, 8, 8, step=0.73)
    labels = wave_net()(pixels).argmax(1)
    labels[-2:] = (labels[-2:] + 1) % CLASSES
    return Images(pixels, labels=labels, classes=tuple("abc"))


def wave_logits(number: int) -> Tensor:
    """`[6, 4]`: of a student (0), the model before (1) and an untrained one (2)."""
    return 2 * wave(6, 4, step=0.9 + 0.2 * number, start=number)
