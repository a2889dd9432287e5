"""The ordinary way to train an image classifier or regressor: mini-batches, warm-up, linear decay, cross-entropy or L1.

Targets, oracles, shadow models and pruned nets are all made here through `trained`, once per content hash. The loop is
the one that trains language models (`recipe.py`), so a killed training goes on to the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MethodError, ModelError, unknown
from ..runs import hash_json, hash_tensors
from .fitting import TrainRecipe, trained
from .recipe import CausalTraining, fit_rows
from .saving import load_state
from .vision_layout import logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["fitted", "fitted_many", "image_recipe"]

RegressionLoss = Literal["l1", "mse"]


def image_recipe(
    net: Callable[..., nn.Module] | PreTrainedConfig,
    *,
    epochs: int,
    lr: float = 2e-3,
    batch_size: int = 64,
    warmup: float = 0.1,
    weight_decay: float = 5e-4,
    momentum: float | None = None,
    clip: float = 1e9,
    regression: RegressionLoss = "l1",
    begin: int = 0,
    stop_after: int | None = None,
    start: Mapping[str, Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
    **of_net: Any,
) -> TrainRecipe:
    """A recipe for `trained` and `fitted` on `Images`.

    Args:
        net: a class or function that makes the net from keyword arguments, found by its name; or a configuration of
            transformers, for an image classifier.
        epochs, lr, batch_size, warmup, weight_decay, momentum, clip, device: see `CausalTraining`; AdamW, or SGD
            where there is a momentum.
        regression: what is minimised where the data has targets.
        begin: epochs to pass over: those that the weights of `start` have behind them.
        stop_after: epochs after which to stop, on the learning rates of the whole training (rewinding).
        start: a state dict to begin from instead of new weights.
        masks: booleans by parameter name; weights outside are 0 from the start and stay so.
        of_net: its keyword arguments, JSON values.

    Raises:
        ModelError: a setting outside its range; arguments that aren't JSON.
    """
    if regression not in ("l1", "mse"):
        raise MethodError(unknown("regression loss", str(regression), ("l1", "mse")))
    how = CausalTraining(epochs, lr, batch_size, warmup, weight_decay, clip, device, momentum=momentum)
    if not 0 <= begin < epochs:
        raise ModelError(f"begin={begin} leaves no epoch of {epochs}. Give 0 to {epochs - 1}.")
    origin = {"net": _name(net), "of_net": of_net}
    settings: dict[str, Any] = {"version": 1, **origin, **how.settings, "regression": regression}
    settings |= {"begin": begin} if begin else {}
    settings |= {} if stop_after is None else {"stop_after": stop_after}
    settings |= {} if start is None else {"start": hash_tensors(dict(start))}
    settings |= {} if masks is None else {"masks": hash_tensors(dict(masks))}

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = _built(net, of_net)
        if start is not None:
            model.load_state_dict(start)
        return model

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        def loss(model: nn.Module, rows: list[Any], device: str) -> Tensor:
            batch = data[rows]
            target = batch.target.to(device)
            outputs = logits_of(model, batch.pixels.to(device))
            if not target.is_floating_point():
                return F.cross_entropy(outputs, target)
            return (F.l1_loss if regression == "l1" else F.mse_loss)(outputs[:, 0], target)

        keep = None if masks is None else _zeroes(masks)
        if keep is not None:
            keep(model)
        fit_rows(model, indices, how, seed, folder, loss, begin=begin, stop_after=stop_after, after_step=keep)

    return TrainRecipe(build, fit, name="image", settings=settings)


def fitted(recipe: TrainRecipe, data: Any, indices: Iterable[int], seed: int) -> nn.Module:
    """The model that `recipe` makes of these positions of `data`, in evaluation mode; trained if it isn't there."""
    folder = trained(recipe, data, indices, seed)
    if (folder / "config.json").exists():
        from transformers import AutoModelForImageClassification

        model: nn.Module = AutoModelForImageClassification.from_pretrained(folder)
        return model.eval()
    with torch.random.fork_rng():
        return load_state(recipe.build(seed), folder).eval()


def fitted_many(
    recipe: TrainRecipe,
    data: Any,
    jobs: Sequence[tuple[Sequence[int], int]],
    tell: Callable[[int], None] = lambda n: None,
) -> list[nn.Module]:
    """One model a job, `(positions, seed)`; several at once through ray where a cluster is running, else one by one.

    Args:
        tell: gets how many are done.
    """
    if _ray_runs():
        import ray

        train = ray.remote(num_cpus=1)(lambda rows, seed: str(trained(recipe, data, rows, seed)))
        waiting = [train.remote(list(rows), seed) for rows, seed in jobs]
        for done in range(len(waiting)):
            ray.wait(waiting, num_returns=done + 1)
            tell(done + 1)
        ray.get(waiting)  # what failed there is raised here
    models = []
    for number, (rows, seed) in enumerate(jobs):
        models.append(fitted(recipe, data, rows, seed))
        tell(number + 1)
    return models


def _ray_runs() -> bool:
    try:
        import ray
    except ImportError:
        return False
    return bool(ray.is_initialized())


def _name(net: Any) -> str:
    """What stands for the net in a recipe's hash."""
    if hasattr(net, "to_diff_dict"):
        return hash_json(net.to_dict())
    module, name = getattr(net, "__module__", None), getattr(net, "__qualname__", None)
    if not callable(net) or module is None or name is None or "<" in name:
        raise ModelError(f"net is {net!r:.60}. Give a class or function with a name of its own, or a configuration.")
    return f"{module}.{name}"


def _built(net: Callable[..., nn.Module] | PreTrainedConfig, of_net: Mapping[str, Any]) -> nn.Module:
    if hasattr(net, "to_diff_dict"):
        from transformers import AutoModelForImageClassification

        model: nn.Module = AutoModelForImageClassification.from_config(net)
        return model
    module: nn.Module = net(**of_net)
    return module


def _zeroes(masks: Mapping[str, Tensor]) -> Callable[[nn.Module], None]:
    """Sets every weight outside its mask to 0."""

    @torch.no_grad()
    def keep(model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))

    return keep
