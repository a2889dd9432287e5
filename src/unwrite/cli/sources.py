"""Where a command's rows and models are from: typed requests that read and load them.

DataRequest    which rows, and how they are read
ModelRequest   which model, and how it is loaded
RunModels      the two models of a run folder, checked against their hashes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import ModelError, RunError, notice
from ..hub import PREFIX
from ..runs import Run, conforms

if TYPE_CHECKING:
    from ..data import ForgetSplit
    from ..models import Loaded

Dtype = Literal["float32", "bfloat16", "float16"]
Turns = Literal["all", "last"]
SHIPPED = ("authors", "landmarks")  # names of data before any file of the same name


def absolute(source: str) -> str:
    """A path that means the same from every folder; a name that is no path here stays as it is."""
    from ..data.text.files import located

    path, part = located(source)
    if source in SHIPPED or not path.exists():
        return source
    return str(path.absolute()) + (f"@{part}" if part else "")


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which rows to forget, keep and never show, and how they are read; see `unwrite.data.split_from`."""

    forget: str
    retain: str | None = None
    holdout: str | None = None
    columns: str | None = None
    turns: Turns = "all"
    allow_overlap: bool = False

    def read(self) -> ForgetSplit:
        """The split.

        Raises:
            DataError: as `split_from`.
        """
        from ..data import split_from

        return split_from(
            self.forget,
            self.retain,
            self.holdout,
            allow_overlap=self.allow_overlap,
            columns=self.columns,
            turns=self.turns,
        )

    def arguments(self) -> dict[str, Any]:
        """As the run folder keeps it."""
        paths = {name: getattr(self, name) for name in ("forget", "retain", "holdout")}
        return {**vars(self), **{name: source and absolute(source) for name, source in paths.items()}}


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which model, and how it is loaded; see `unwrite.models.load`."""

    name: str
    revision: str | None = None
    dtype: Dtype = "float32"
    device: str = "auto"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    base: str | None = None

    @property
    def place(self) -> str:
        """The device: cuda where there is one, for "auto"."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def load(self) -> Loaded:
        """The model, its source with the dtype and the hash of its weights.

        Raises:
            ModelError: as `load`.
        """
        import torch

        from ..models import load
        from ..runs import hash_model

        loaded = load(
            self.name,
            revision=self.revision,
            dtype=getattr(torch, self.dtype),
            device=self.place,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
            base=self.base,
        )
        weights = {"dtype": self.dtype, "weights": hash_model(loaded.model)}
        return replace(loaded, source={**loaded.source, **weights})

    def arguments(self) -> dict[str, Any]:
        """As the run folder keeps it."""
        from ..models import BUNDLED

        name = self.name if self.name in BUNDLED else absolute(self.name)
        others = {k: v for k, v in vars(self).items() if k not in ("name", "revision", "base")}
        return {"model": name, **others, **({} if self.base is None else {"base": absolute(self.base)})}


@dataclass(frozen=True, kw_only=True)
class RunModels:
    """The two models of a run folder, loaded as they were made and told apart from any other by their hashes.

    Args:
        options: further fields of `ModelRequest`, such as its device.
    """

    run: Run
    options: Mapping[str, Any] = field(default_factory=dict)

    def before(self) -> Loaded:
        """The model that the run was made from.

        Raises:
            ModelError: it isn't there any more, or is another one now.
        """
        source = self._source()
        loaded = self._load(_again(source), source.get("revision"), source.get("base"))
        self._need_same(source["name"], loaded.source["weights"], source)
        return loaded

    def after(self) -> Loaded:
        """The model that the run made.

        Raises:
            ModelError: it is not what was saved.
        """
        folder = self.run.folder / "model"
        is_adapter = (folder / "adapter_config.json").is_file()
        loaded = self._load(str(folder.absolute()), None, _base_after(self._source()) if is_adapter else None)
        recorded = self.run.record.get("model", {})
        self._need_same(str(folder), _hash_as_saved(loaded), recorded if isinstance(recorded, Mapping) else {})
        return loaded

    def _source(self) -> Mapping[str, Any]:
        """What run.json says of the model before."""
        entry = self.run.record.get("source")
        source: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
        if source.get("of") == "images":
            raise RunError(
                f"{self.run.folder} is a run on images, and this command reads texts. Its audit is {self.run.folder / 'report.html'}."
            )
        base = source.get("base")
        plain = isinstance(source.get("name"), str) and (
            base is None or (isinstance(base, Mapping) and isinstance(base.get("name"), str))
        )
        if (
            not plain
            or not conforms(source.get("revision"), str | None)
            or source.get("dtype", "float32") not in get_args(Dtype)
        ):
            raise RunError(
                f"{self.run.folder / 'run.json'} does not say which model it was made from. Run the same command again, into another "
                "folder."
            )
        return source

    def _load(self, name: str, revision: str | None, base: Mapping[str, Any] | None) -> Loaded:
        dtype = self._source().get("dtype", "float32")
        named = None if base is None else _again(base)
        return ModelRequest(name=name, revision=revision, dtype=dtype, base=named, **self.options).load()

    def _need_same(self, name: str, now: str, recorded: Mapping[str, Any]) -> None:
        then = recorded.get("weights")
        if then is None:
            notice(f"{self.run.folder / 'run.json'} has no hash of {name}, so it can't be told whether it has changed.")
        elif now != then:
            raise ModelError(
                f"{name} is not the model of the run {self.run.folder} any more: its weights have changed (hash {now}, "
                f"then {then}). Restore it, or run unwrite {self.run.record.get('kind', 'forget')} again."
            )


def _again(source: Mapping[str, Any]) -> str:
    """The name that loads a model again wherever the command is started: of the Hub, what is here doesn't matter."""
    return f"{PREFIX}{source['name']}" if source.get("kind") == "hub" else str(source["name"])


def _base_after(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an adapter that a run made stands on: its own model, or, where that was an adapter, that one's base."""
    base: Mapping[str, Any] = source.get("base") or source
    return base


def _hash_as_saved(loaded: Loaded) -> str:
    """What `models.save` notes of this model: the hash of an adapter's own tensors, or of the whole state."""
    if not hasattr(loaded.model, "get_base_model"):
        return str(loaded.source["weights"])
    from peft import get_peft_model_state_dict

    from ..runs import hash_tensors

    return hash_tensors(get_peft_model_state_dict(loaded.model, save_embedding_layers=False))
