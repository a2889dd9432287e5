# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .memory.augmented import MemoryAugmentedLM as MemoryAugmentedLM
from .memory.datastore import Datastore as Datastore
from .memory.datastore import build_datastore as build_datastore
from .memory.knn import KNNLM as KNNLM
from .memory.knn import ApproximateIndex as ApproximateIndex
from .memory.knn import SparseTargets as SparseTargets
from .memory.knn import knn_targets as knn_targets
from .memory.mixing import MixtureScores as MixtureScores
from .memory.mixing import score_rows as score_rows
from .memory.mlp_memory import MemoryShape as MemoryShape
from .memory.mlp_memory import MLPMemory as MLPMemory
from .memory.tap import Tap as Tap
from .memory.training import MemoryTraining as MemoryTraining
from .memory.training import train_memory as train_memory
