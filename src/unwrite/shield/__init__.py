"""Pictures changed so that a model trained on them learns nothing of use. Nothing here imports torch until a name is used."""

from ..catalog.packages import lazily

__getattr__, __dir__ = lazily(__name__)
