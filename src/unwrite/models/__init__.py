"""Models: load and save them, find their parts, train ordinary ones once.

Nothing here imports torch until a name is used.
"""

from ..catalog.packages import lazily

__getattr__, __dir__ = lazily(__name__)
