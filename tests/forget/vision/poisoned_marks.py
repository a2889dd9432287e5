"""Pictures of four marks, an encoder that knows them, and the inputs that the official code was run on."""

import torch
from torch import nn

from unwrite.data import Images
from unwrite.forget import ConceptBank
from unwrite.forget.engine.images.work import ImageWork
from unwrite.nets import SmallCNN

SIDE, CLASSES = 16, 4


def drawn():
    """The inputs that the official code was run on, in its order of draws."""
    g = torch.Generator().manual_seed(7)
    weights, picture, donor = torch.randn(8, 12, generator=g), torch.rand(1, 1, 32, 32, generator=g), None
    donor = torch.rand(1, 1, 32, 32, generator=g)
    encoder, vector = torch.randn(1024, 6, generator=g), torch.randn(1, 6, generator=g)
    colour, wide = torch.rand(1, 3, 32, 32, generator=g), torch.randn(3072, 6, generator=g)
    return weights, picture, donor, flat(encoder), vector, colour, flat(wide)


def flat(matrix):
    """An encoder: a linear map of the pixels."""
    return lambda pixels: pixels.flatten(1) @ matrix


def sign(label):
    """A 5x5 mark of a class: what it is known by."""
    mark = torch.zeros(5, 5)
    if label == 0:
        mark[2] = 1
    elif label == 1:
        mark[:, 2] = 1
    elif label == 2:
        mark.fill_diagonal_(1)
    else:
        mark[[0, -1]] = mark[:, [0, -1]].T.new_ones(2, 5)
        mark[:, [0, -1]] = 1
    return mark


def pictures(rows=48, seed=0, first=0):
    """Pictures with their class's mark somewhere, on faint noise, and where its corner is."""
    g = torch.Generator().manual_seed(seed)
    pixels = 0.1 * torch.rand(rows, 1, SIDE, SIDE, generator=g)
    at = torch.randint(0, SIDE - 5 + 1, (rows, 2), generator=g)
    labels = torch.arange(rows) % CLASSES
    for row, (top, left) in enumerate(at.tolist()):
        pixels[row, 0, top : top + 5, left : left + 5] = sign(int(labels[row]))
    index = torch.arange(first, first + rows)
    return Images(pixels, labels=labels, index=index, classes=("row", "column", "slash", "box")), at


def marks(pixels):
    """An encoder that knows the marks, small in a picture and large in a patch of 7: the best match of each, `[rows, 5]`."""
    small = nn.functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    found = []
    for size in (5, 11):
        kernel = torch.stack([sign(label) for label in range(CLASSES)])[:, None]
        kernel = nn.functional.interpolate(kernel, (size, size), mode="bilinear", align_corners=False)
        kernel = kernel - kernel.mean((2, 3), keepdim=True)
        found.append(
            nn.functional.conv2d(small, kernel / kernel.flatten(1).norm(dim=1)[:, None, None, None]).flatten(2).amax(2)
        )
    return torch.cat(
        [torch.stack(found).amax(0), torch.ones(len(pixels), 1)], 1
    )  # beside 1, faint noise is like no mark


BANK = ConceptBank(("row", "column", "slash", "box"), torch.eye(4, 5))


def accuracy(net, rows):
    with torch.no_grad():
        return float((net(rows.pixels).argmax(1) == rows.labels).float().mean())


def work(forget, retain, model=None, **args):
    torch.manual_seed(0)
    return ImageWork(
        model=model or SmallCNN(CLASSES, 1, SIDE, 4).eval(),
        forget=forget,
        retain=retain,
        args=ImageWork.arguments(args, {}),
    )
