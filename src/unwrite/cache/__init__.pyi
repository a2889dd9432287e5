# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .base import CompressedCache as CompressedCache
from .base import CompressedLayer as CompressedLayer
from .base import Compression as Compression
from .engine.bitmap import BitmapTensor as BitmapTensor
from .engine.bitmap import pack_bitmap as pack_bitmap
from .engine.head_groups import HeadGroups as HeadGroups
from .engine.head_groups import calibrate_head_entropy as calibrate_head_entropy
from .engine.key_order import KeyOrder as KeyOrder
from .engine.key_order import calibrate_key_order as calibrate_key_order
from .engine.pruning import prune_per_token as prune_per_token
from .engine.sparse_attention import sparse_pv as sparse_pv
from .engine.sparse_attention import sparse_qk as sparse_qk
from .engine.stages import stage_labels as stage_labels
from .mustafar import Mustafar as Mustafar
from .mustafar import MustafarCache as MustafarCache
from .rotatekv import RotateKV as RotateKV
from .rotatekv import RotateKVCache as RotateKVCache
from .uncomp import UNComp as UNComp
from .uncomp import UNCompCache as UNCompCache
