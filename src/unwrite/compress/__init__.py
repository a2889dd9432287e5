"""Contexts, datastores and nets in fewer numbers. Nothing here imports torch until a name is used."""

from ..catalog.packages import lazily

__getattr__, __dir__ = lazily(__name__)
