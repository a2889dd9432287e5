"""`load(name)`: one call for a bundled model, a local folder, a GGUF file, an adapter, a guard, or a Hub id.

Whatever it is becomes a local folder first; that folder is checked (`checkpoints.py`) and read by transformers
without a network. So all sources are held to the same rules, and only a Hub id ever reaches out.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import catalog, hub
from ..errors import ModelError, setting, unknown
from .accounting import adapter_account, check_account, stored_shapes
from .adapter_settings import check_settings
from .adapters import ADAPTER, adapter_base, noted_of_hub
from .bundled import BUNDLED, bundled_folder
from .checkpoints import check_layers, check_weights, first_line, needs_remote_code, read_json
from .gguf import converted
from .gguf_parts import gguf_in
from .quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Loaded", "checked_device", "load", "load_model", "model_folder", "register_loader"]


@dataclass(frozen=True)
class Loaded:
    """A model ready for use.

    Args:
        model: in evaluation mode, on the device asked for.
        tokenizer: with a pad token.
        source: where it is from: `name`, `kind` (bundled, folder, gguf, hub), `folder`, and where there is one
            `revision` (the Hub's commit), `base` (the same for an adapter's base) and `loader` (a guard's).
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    source: Mapping[str, Any]


@dataclass(frozen=True)
class _Options:
    dtype: torch.dtype | str
    device: torch.device
    revision: str | None
    allow_pickle: bool
    trust_remote_code: bool
    offline: bool | None
    base: str | None = None

    def of_loader(self) -> dict[str, Any]:
        """What a guard's loader is given."""
        return {name: value for name, value in vars(self).items() if name != "base"}


LOADERS: dict[str, Callable[..., Loaded]] = {}


def register_loader(name: str, loader: Callable[..., Loaded]) -> None:
    """Makes folders whose `unwrite.json` says `{"loader": name}` load through `loader(folder, **options)`.

    This is how what is more than one model (a guard) comes back from its `save_pretrained`. The options are those of
    `load`: dtype, device, revision, allow_pickle, trust_remote_code, offline. The file only names a loader; it can't
    bring one.
    """
    LOADERS[name] = loader


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    offline: bool | None = None,
    base: str | Path | None = None,
) -> Loaded:
    """Loads a model and its tokenizer.

    Args:
        name: a bundled name (`smollm2-135m`; these come first, `./name` is the folder), a local folder, a `.gguf`
            file (or one part of several), or a Hub id (`org/name`; `hf:org/name` where a folder `org` is here).
        dtype: of the weights; "auto" takes the checkpoint's.
        revision: a branch, tag or commit, for a Hub id.
        allow_pickle: read pickled weights where there are no safetensors; they can run code.
        trust_remote_code: run the model's own Python, where transformers has no class for it.
        offline: True never touches the network (a Hub id must be in the local Hub cache), nor does any value while
            UNWRITE_OFFLINE, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.
        base: of an adapter, the model it stands on. Needed where its own file names one of the Hub, or a folder outside
            its own: whoever wrote the adapter would choose what is fetched and read here.

    Raises:
        ModelError: the one line that says what is wrong with which file or name, and what to do.
    """
    options = _Options(
        dtype,
        checked_device(device),
        revision,
        allow_pickle,
        trust_remote_code,
        offline,
        None if base is None else str(base),
    )
    folder, source = _resolve(str(name), options)
    guard = _guard(folder)
    _need_adapter(folder, options)
    if guard is not None:
        loaded = guard(folder, **options.of_loader())
        return replace(loaded, source={**source, **loaded.source})
    model, more = _model(folder, source, options)
    return Loaded(model, _tokenizer(folder, source, options), {**source, **more})


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    offline: bool | None = None,
    base: str | Path | None = None,
) -> nn.Module:
    """As `load`, for a folder that has no tokenizer (what `trained` writes) or whose tokenizer isn't needed."""
    options = _Options(
        dtype,
        checked_device(device),
        revision,
        allow_pickle,
        trust_remote_code,
        offline,
        None if base is None else str(base),
    )
    folder, source = _resolve(str(name), options)
    guard = _guard(folder)
    _need_adapter(folder, options)
    return guard(folder, **options.of_loader()).model if guard is not None else _model(folder, source, options)[0]


def model_folder(name: str | Path, *, revision: str | None = None, offline: bool | None = None) -> Path:
    """The local folder that any name `load` takes stands for, downloaded or converted if it must be."""
    options = _Options(torch.float32, torch.device("cpu"), revision, False, False, offline)
    return _resolve(str(name), options)[0]


def checked_device(name: str | torch.device) -> torch.device:
    """A device that tensors can be put on.

    Raises:
        ModelError: it can't be used here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device {str(name)!r} cannot be used here ({first_line(error)}). Try {setting('device', 'cpu')}."
        ) from error
    return torch.device(name)


def _resolve(name: str, options: _Options) -> tuple[Path, dict[str, Any]]:
    """The local folder of any name, and where it is from."""
    if hub.is_explicit(name):
        return _from_hub(name, options)
    path = _as_path(name)
    if name in BUNDLED:
        folder, kind = bundled_folder(name), "bundled"
    elif path.is_dir() and (gguf := gguf_in(path)) is not None:
        folder, kind = converted(gguf), "gguf"
    elif path.is_dir():
        folder, kind = path.absolute(), "folder"  # a record of it must mean the same from every folder
    elif path.suffix == ".gguf":
        folder, kind = converted(path), "gguf"
    elif path.is_file():
        raise ModelError(f"{path} is a file. Pass the folder it is in, a .gguf file, or a Hub id.")
    else:
        return _from_hub(name, options)
    if options.revision is not None:
        raise ModelError(f"revision {options.revision!r} is for a Hub id; {name} is a {kind}. Leave it out.")
    absolute = name if kind == "bundled" else str(path.absolute())
    return folder, {"name": absolute, "kind": kind, "folder": str(folder)}


def _from_hub(name: str, options: _Options) -> tuple[Path, dict[str, Any]]:
    """The same for a name that nothing here answers to: of the Hub, unless it is a path."""
    known = hub.repository(name)
    if known is None:
        raise ModelError(
            f"{unknown('model', name, BUNDLED)} There is no such folder or .gguf file either; a Hub id is org/name."
        )
    if (reason := hub.path_reason(name)) is not None:
        raise ModelError(
            f"there is no model {name} ({reason}, so it is not looked up on the Hub). Check the path, or write "
            f"{hub.PREFIX}{name} for a model of the Hub."
        )
    folder = _snapshot(known, options)
    return folder, {"name": known, "kind": "hub", "folder": str(folder), "revision": folder.name}


def _as_path(name: str) -> Path:
    path = Path(os.path.expanduser(name))  # which leaves the ~ of nobody as it is
    try:
        path.is_dir()
    except OSError as error:  # a name no file system takes
        raise ModelError(f"{name!r:.80} can't be the name of a model ({error.strerror}).") from None
    return path


def _snapshot(name: str, options: _Options) -> Path:
    """Downloads what a model needs from the Hub, or finds it in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        IncompleteSnapshotError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
    patterns += ["*.bin", "*.pt"] if options.allow_pickle else []
    patterns += ["*.py"] if options.trust_remote_code else []
    at = f"{name}@{options.revision}" if options.revision else name
    offline = bool(options.offline) or hub.offline()
    try:
        return Path(
            snapshot_download(
                name,
                revision=options.revision,
                local_files_only=offline,
                allow_patterns=patterns,
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except GatedRepoError as error:
        raise ModelError(f"{at} is gated on the Hub. Accept its terms there, then run: hf auth login") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {options.revision!r} on the Hub.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{at} is neither a local folder, nor bundled ({', '.join(BUNDLED)}), nor on the Hub."
        ) from error
    except IncompleteSnapshotError as error:
        raise ModelError(f"{at} is only partly in the Hub cache. Load it once with a network.") from error
    except (OSError, ConnectionError) as error:
        why = (
            "nothing may be downloaded (offline)" if offline else f"the Hub cannot be reached ({type(error).__name__})"
        )
        raise ModelError(
            f"{at} is not in the Hub cache, and {why}. Check the connection, or use a local folder or a bundled "
            f"model ({', '.join(BUNDLED)})."
        ) from error


def _guard(folder: Path) -> Callable[..., Loaded] | None:
    note = folder / "unwrite.json"
    name = read_json(note).get("loader") if note.exists() else None
    if name is None:
        return None
    loader = LOADERS.get(str(name)) or catalog.loader(str(name))
    if loader is None:
        raise ModelError(
            f"{note}: {unknown('loader', str(name), LOADERS)} Import the module that registers it, then load again."
        )
    return loader


def _model(folder: Path, source: Mapping[str, Any], options: _Options) -> tuple[nn.Module, dict[str, Any]]:
    if (folder / ADAPTER).exists():
        return _adapted(folder, options)
    model = _read(folder, options)
    if source["kind"] == "hub":
        # What an adapter saved on it will name as its base, on every machine: not this one's cache.
        model.config._name_or_path = model.name_or_path = source["name"]
        model.config._commit_hash = source["revision"]
    return model.to(options.device), {}


def _need_adapter(folder: Path, options: _Options) -> None:
    if options.base is not None and not (folder / ADAPTER).exists():
        raise ModelError(f"{folder} is no adapter, so {setting('base')} has no meaning for it. Leave it out.")


def _base(folder: Path, options: _Options) -> tuple[Path, dict[str, Any]]:
    """The local folder of an adapter's base, and where it is from."""
    if options.base is None and (noted := noted_of_hub(folder)) is not None:
        name, revision = noted
        try:
            return _resolve(name, replace(options, revision=revision, offline=True))
        except ModelError:
            pass  # nothing is fetched without a word: the user is asked, below
    return _resolve(adapter_base(folder, options.base), replace(options, revision=None, base=None))


def _adapted(folder: Path, options: _Options) -> tuple[nn.Module, dict[str, Any]]:
    from peft import PeftModel

    config = read_json(folder / ADAPTER)
    check_weights(folder, "adapter_model", allow_pickle=options.allow_pickle)
    base_folder, base_source = _base(folder, options)
    base = base_source["name"]
    if (base_folder / ADAPTER).exists():
        raise ModelError(
            f"{folder} is an adapter on an adapter ({base}). Merge that one first: models.save(..., merge=True)."
        )
    model, _ = _model(base_folder, base_source, replace(options, base=None))
    shapes = stored_shapes(folder.glob("adapter_model.safetensors"))
    check_settings(folder, config, [name for name, _ in model.named_modules()], shapes)
    with quiet(), hub.closed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of missing weights: they are an error below
        try:
            adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
        except Exception as error:  # whatever the library meets in a foreign adapter
            raise ModelError(f"{folder} could not be loaded on {base}: {first_line(error)}") from error
    check_account(folder, adapter_account(folder, adapted), adapted, {})
    return adapted.eval().to(options.device), {"base": base_source}


def _read(folder: Path, options: _Options) -> nn.Module:
    """A whole model from a checked folder; weights that are missing from it are an error, never random."""
    config = folder / "config.json"
    if not config.exists():
        raise ModelError(f"{folder} has no config.json. Is it a model folder?")
    described = read_json(config)
    code = needs_remote_code(described)
    if code is not None and not options.trust_remote_code:
        raise ModelError(
            f"{config} asks to run its own code ({code}), and transformers has no class for it. Read that code, "
            f"then pass {setting('trust_remote_code', True)}."
        )
    check_weights(folder, "model", allow_pickle=options.allow_pickle)
    shapes = stored_shapes(folder.glob("*.safetensors"))
    if shapes:
        check_layers(config, described, len(shapes))
    with quiet(), hub.closed():  # a config.json may name code or parts of the Hub
        try:
            model, info = _auto_class(described).from_pretrained(
                folder,
                dtype=options.dtype,
                local_files_only=True,
                use_safetensors=None if options.allow_pickle else True,
                trust_remote_code=options.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
        except Exception as error:  # whatever a library meets in a foreign checkpoint
            raise ModelError(f"{folder} could not be loaded: {first_line(error)}") from error
    check_account(folder, info, model, shapes)
    return model.eval()


def _auto_class(config: Mapping[str, Any]) -> Any:
    """The Auto class that brings back the model with the head it was saved with."""
    import transformers

    architecture = str((config.get("architectures") or ["ForCausalLM"])[0])
    by_ending = {
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
        "ForImageClassification": transformers.AutoModelForImageClassification,
        "ForConditionalGeneration": transformers.AutoModelForImageTextToText,
        "Model": transformers.AutoModel,
    }
    text_alone = config.get("is_encoder_decoder") and "vision_config" not in config
    if text_alone and architecture.endswith("ForConditionalGeneration"):
        return transformers.AutoModelForSeq2SeqLM
    if architecture.endswith("LMHeadModel"):
        return transformers.AutoModelForCausalLM
    return next(
        (auto for ending, auto in by_ending.items() if architecture.endswith(ending)),
        transformers.AutoModelForCausalLM,
    )


def _tokenizer(folder: Path, source: Mapping[str, Any], options: _Options) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; an adapter without one takes its base's."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").exists() and not (folder / "tokenizer.json").exists():
        if (folder / ADAPTER).exists():
            return _tokenizer(
                *_base(folder, options),
                replace(options, base=None),
            )
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer_config.json). Save one into it, "
            "or use models.load_model."
        )
    try:
        with hub.closed():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=options.trust_remote_code
            )
    except Exception as error:  # as above
        raise ModelError(f"the tokenizer of {folder} could not be loaded: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"the tokenizer of {source['name']} has neither a pad nor an eos token. Give it one and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
