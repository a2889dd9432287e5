"""Small convolutional nets with batch normalisation whose statistics are drawn, as trained ones are anything but 0 and 1."""

import torch
from torch import nn
from torch.nn import functional as F


class Chain(nn.Module):
    """Two convolutions with normalisation, a mean over the picture, a linear head."""

    def __init__(self, widths=(8, 6), kernel=3, act=True, bias=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], kernel, padding=kernel // 2, bias=bias)
        self.norm1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel, padding=kernel // 2, bias=bias)
        self.norm2 = nn.BatchNorm2d(widths[1])
        self.act = nn.ReLU() if act else nn.Identity()
        self.head = nn.Linear(widths[1], 10)

    def forward(self, pixels):
        x = self.act(self.norm1(self.conv1(pixels)))
        x = self.act(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class Flattened(nn.Module):
    """As VGG: pooling between, and the last pictures flattened into the head."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(24, 10)

    def forward(self, pixels):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(pixels))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x)), inplace=True), 2)
        return self.head(x.flatten(1))


class ResidualPair(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        inner = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        inner += x
        return self.relu(inner)


class Residual(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.block = ResidualPair(width)
        self.head = nn.Linear(width, 10)

    def forward(self, pixels):
        x = self.block(F.relu(self.norm(self.stem(pixels))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def settled(net, seed=0):
    """The net in evaluation mode, with weights and statistics drawn anew by the seed; factors are positive, as most are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / fan_in**0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
            if isinstance(module, nn.BatchNorm2d):
                size = module.weight.shape
                module.weight.copy_(0.5 + torch.rand(size, generator=generator))
                module.bias.copy_(0.3 * torch.randn(size, generator=generator))
                module.running_mean.copy_(0.2 * torch.randn(size, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
    return net.eval()
