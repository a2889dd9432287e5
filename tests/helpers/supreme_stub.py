"""What stands in for supreme-unlearning and Lightning: their module paths and signatures, and as little behind them as tests look at.

Every call is noted in `supreme.calls`. Functions that train take one pass of plain SGD, in the order of their loader.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .installed import install

METHODS = "methods/unlearning_methods"
HEAD = """
    import random
    import torch
    import wandb
    from torch.nn import functional as F
    import supreme
    from supreme.utils.generic_utils import create_dataloader


    def fit(fabric, model, loader, lr, sign=1):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        model, optimizer = fabric.setup(model, optimizer)
        model.train()
        for x, _, y in loader:
            fabric.backward(sign * F.cross_entropy(model(x), y))
            optimizer.step()
        fabric.print("trained")
        return model


    def note(name, given):
        supreme.calls.append({"function": name, **given})
"""
FABRIC = """
    import os
    import warnings

    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    warnings.simplefilter("always", ResourceWarning)


    class Fabric:
        def __init__(self, accelerator="auto", devices="auto"):
            self.accelerator, self.devices = accelerator, devices

        def setup(self, model, *optimizers):
            return (model, *optimizers) if optimizers else model

        def setup_dataloaders(self, loader):
            return loader

        def backward(self, loss):
            loss.backward()

        def print(self, *words):
            print(*words)
"""
UTILITIES = """
    import os
    import debugpy
    from torch.utils.data import DataLoader


    def create_dataloader(dataset, batch_size, is_training=True, num_workers=8, pin_memory=None, num_gpus=1, **kwargs):
        workers = 0 if os.environ.get("SCALENE") else num_workers
        return DataLoader(dataset, batch_size=batch_size, shuffle=is_training, num_workers=workers)
"""
DATASETS = """
    from torchvision import transforms
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive

    train = [transforms.RandomCrop(32, padding=4)]


    class Cifar10(CIFAR10):
        pass
"""
_DAMPENING = """
    def {name}(fabric, num_gpus: int, wandb_logging_flag: bool, model, forget_train_dataloader, full_train_dataloader,
               dampening_constant: float, selection_weighting: float, **kwargs):
        note("{name}", locals())
        for x, _, y in full_train_dataloader:
            fabric.backward(F.cross_entropy(model(x), y))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(dampening_constant * 0.9)
        return model
"""
FUNCTIONS = {
    "assd": _DAMPENING.format(name="assd"),
    "lfssd": _DAMPENING.format(name="lfssd"),
    "ssd": _DAMPENING.format(name="ssd"),
    "finetune": """
    def finetune(fabric, num_gpus: int, wandb_logging_flag: bool, model, retain_train_dataloader, retain_test_dataloader, **kwargs):
        note("finetune", locals())
        return fit(fabric, model, retain_train_dataloader, 0.02)
""",
    "neg_grad": """
    def neg_grad(fabric, num_gpus: int, wandb_logging_flag: bool, model, forget_train_dataloader, forget_test_dataloader, **kwargs):
        note("neg_grad", locals())
        return fit(fabric, model, forget_train_dataloader, 0.02, -1)
""",
    "random_labeling": """
    def random_labeling(fabric, num_gpus: int, wandb_logging_flag: bool, type_of_unlearning_strategy: str, num_labels: int, model,
                        retain_train_dataloader, retain_test_dataloader, forget_train_dataloader, **kwargs):
        own = create_dataloader(forget_train_dataloader.dataset, 128)
        note("random_labeling", locals())
        x, y, label = forget_train_dataloader.dataset[0]
        random.choice(range(num_labels))
        return fit(fabric, model, own, 1e-4)
""",
    "scrub": """
    def scrub(fabric, num_gpus: int, wandb_logging_flag: bool, model, retain_train_dataloader, forget_train_dataloader,
              sgda_epochs: int = 10, sgda_learning_rate: float = 0.0005, lr_decay_epochs: list = None, lr_decay_rate: float = 0.1,
              sgda_weight_decay: float = 0.1, sgda_momentum: float = 0.9, gamma: float = 1.0, alpha: float = 0.5,
              beta: float = 0.0, smoothing: float = 0.5, msteps: int = 3, kd_T: float = 2.0, optimizer_type: str = "adam", **kwargs):
        note("scrub", locals())
        for parameter in model.parameters():
            parameter.requires_grad = True
        return fit(fabric, model, retain_train_dataloader, sgda_learning_rate)
""",
    "bad_teacher": """
    from copy import deepcopy
    from supreme.datasets.datasets import Cifar10


    def bad_teacher(fabric, num_gpus: int, wandb_logging_flag: bool, model, unlearning_teacher, retain_train_dataloader,
                    forget_train_dataloader, **kwargs):
        note("bad_teacher", locals())
        teacher = deepcopy(model)
        with torch.no_grad():
            for x, _, _ in forget_train_dataloader:
                teacher(x), unlearning_teacher(x)
        return model
""",
    "unsir": """
    def unsir(fabric, num_gpus: int, wandb_logging_flag: bool, type_of_unlearning_strategy: str, num_labels: int,
              forget_label_id: int, model, trainset, retain_train_dataloader, retain_test_dataloader, **kwargs):
        note("unsir", locals())
        return model
""",
}


def installed(site: Path, version: str = "0.1.5", without: str = "") -> None:
    """Both packages in the folder `site`, as an installer would leave them.

    Args:
        version: of supreme-unlearning.
        without: a function whose module lacks it.
    """
    files = {
        "__init__.py": "calls = []",
        "utils/generic_utils.py": UTILITIES,
        "datasets/datasets.py": DATASETS,
        **{f"{METHODS}/{name}.py": HEAD + (text if name != without else "") for name, text in FUNCTIONS.items()},
    }
    install(site, "supreme-unlearning", files, {}, "supreme", version)
    install(site, "lightning", {"fabric/__init__.py": FABRIC}, {}, version="2.6.6")


@contextmanager
def forgotten_imports() -> Iterator[None]:
    """None of the two is imported yet, and none is afterwards."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in ("supreme", "lightning")]

    before = {name: sys.modules.pop(name) for name in ours()}
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)
