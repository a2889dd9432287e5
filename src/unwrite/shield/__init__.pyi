# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .base import Additive as Additive
from .base import Protection as Protection
from .base import Shield as Shield
from .cuda import CUDA as CUDA
from .em_noise import EMNoise as EMNoise
from .engine.features import PictureFeatures as PictureFeatures
from .engine.folders import FolderPictures as FolderPictures
from .engine.releasing import Release as Release
from .engine.releasing import protect_folder as protect_folder
from .unlearnable_clusters import UnlearnableClusters as UnlearnableClusters
