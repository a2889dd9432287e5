# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .base import CompressedCache as CompressedCache
from .base import CompressedLayer as CompressedLayer
from .base import Compression as Compression
