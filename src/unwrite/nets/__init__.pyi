# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .small_mlp import SmallMLP as SmallMLP
from .small_vision import SmallCNN as SmallCNN
from .small_vision import SmallResNet as SmallResNet
from .small_vision import SmallViT as SmallViT
from .text_noise_generator import TextNoiseGenerator as TextNoiseGenerator
