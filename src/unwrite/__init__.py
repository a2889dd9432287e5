"""unwrite takes knowledge out of a trained model, proves that it is gone, and lets what remains write fast.

    import unwrite
    loaded = unwrite.load("smollm2-135m")
    split = unwrite.landmarks()
    model = unwrite.NPO().apply(loaded.model, split.forget, split.retain, processing_class=loaded.tokenizer)
    unwrite.evaluate(model, split, tokenizer=loaded.tokenizer)

Nothing heavy is imported until a name is used.
"""

from importlib.metadata import version

from .catalog.packages import lazily

__version__ = version("unwrite")

__getattr__, __dir__ = lazily(__name__)
