# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .base import Additive as Additive
from .base import Protection as Protection
from .base import Shield as Shield
from .cuda import CUDA as CUDA
from .em_noise import EMNoise as EMNoise
from .engine.dual_encoders import ClipEncoders as ClipEncoders
from .engine.features import PictureFeatures as PictureFeatures
from .engine.folders import FolderPictures as FolderPictures
from .engine.generator_training import GeneratorTraining as GeneratorTraining
from .engine.generator_training import train_generator as train_generator
from .engine.noise_generators import load_generator as load_generator
from .engine.noise_generators import save_generator as save_generator
from .engine.releasing import Release as Release
from .engine.releasing import protect_folder as protect_folder
from .t2ue import T2UE as T2UE
from .unlearnable_clusters import UnlearnableClusters as UnlearnableClusters
