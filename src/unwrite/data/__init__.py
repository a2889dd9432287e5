"""Forget, retain and holdout rows, texts and images: reading, checking, encoding, and the sets that ship.

Nothing here imports torch or datasets until a name that needs them is used.
"""

from ..catalog.packages import lazily

__getattr__, __dir__ = lazily(__name__)
