# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .base import CompressedCache as CompressedCache
from .base import CompressedLayer as CompressedLayer
from .base import Compression as Compression
from .engine.head_groups import HeadGroups as HeadGroups
from .engine.head_groups import calibrate_head_entropy as calibrate_head_entropy
from .engine.stages import stage_labels as stage_labels
from .uncomp import UNComp as UNComp
from .uncomp import UNCompCache as UNCompCache
