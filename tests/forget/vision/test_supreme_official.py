"""SUPREME's numbers on the same net and rows (official_supreme.json says how they were got), and what ours does otherwise.

The last test runs the package itself where it is installed.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from edit_inputs import edit_net, edit_sets

from unwrite.bench.supreme import SupremeMethod
from unwrite.forget.dampening import ASSD, LFSSD, SSD
from unwrite.forget.gradient_ascent import GradientAscent
from unwrite.forget.vision.fine_tuning import FineTune
from unwrite.forget.vision.scrub import SCRUB
from unwrite.forget.vision.unsir import UNSIR

CASES = json.loads((Path(__file__).parent / "official_supreme.json").read_text())["cases"]
SMOOTHED = next(case for case in CASES if case["options"].get("smoothing"))
SAME = [case for case in CASES if case is not SMOOTHED]
FIVE = {"learning_rate": 0.02, "num_train_epochs": 5}
TOLERANCE = 1e-6  # float32, sums in another order
pytestmark = pytest.mark.filterwarnings("ignore:.* selects:UserWarning")  # so few rows select much


def label(case):
    return " ".join([case["function"], *(f"{name}={value}" for name, value in case["options"].items())])


def ours(case):
    """Our method and its training arguments for a case."""
    options, batch = case["options"], {"per_device_train_batch_size": case["retain_batch"]}
    alpha, lam = options.get("selection_weighting"), options.get("dampening_constant")
    if case["function"] == "finetune":
        return FineTune(), FIVE | batch
    if case["function"] == "neg_grad":
        return GradientAscent(), {**FIVE, "per_device_train_batch_size": case["forget_batch"]}
    if case["function"] == "ssd":
        return SSD(alpha=alpha, lam=lam, importance_batch=8), None
    if case["function"] == "lfssd":
        return LFSSD(alpha=alpha, lam=lam, importance_batch=8), None
    if case["function"] == "assd":
        return ASSD(lam=lam, importance_batch=8), None
    scrub = SCRUB(
        msteps=options["msteps"], gamma=1.0, alpha=0.5, temperature=2.0, decay=tuple(options["lr_decay_epochs"]),
        forget_batch=case["forget_batch"],
    )  # fmt: skip
    training = {
        "num_train_epochs": options["sgda_epochs"],
        "weight_decay": 0.1,
        "optim": options.get("optimizer_type", "adam"),
    }
    return scrub, {**training, **batch, "learning_rate": options.get("sgda_learning_rate", 5e-4)}


def unlearnt(case):
    net = edit_net()
    method, args = ours(case)
    method.apply(net, *edit_sets(), args=args)
    return net.state_dict()


def distance(state, case):
    """The largest difference of a weight or running statistic."""
    wanted = {name: torch.tensor(values, dtype=torch.float64) for name, values in case["weights"].items()}
    return max(float((state[name].double().flatten() - values).abs().max()) for name, values in wanted.items())


@pytest.mark.parametrize("case", SAME, ids=label)
def test_the_same_rows_and_settings_give_its_weights(case):
    assert distance(edit_net().state_dict(), case) > 100 * TOLERANCE
    assert distance(unlearnt(case), case) < TOLERANCE


def test_scrub_differs_by_its_pull_towards_the_teacher_alone():
    without = next(case for case in SAME if case["options"] == {**SMOOTHED["options"], "smoothing": 0.0})
    assert distance(unlearnt(SMOOTHED), without) < TOLERANCE
    assert distance(unlearnt(SMOOTHED), SMOOTHED) > 1000 * TOLERANCE


def test_unsirs_noise_leaves_no_gradient_in_the_model():
    net, (forget, retain) = edit_net(), edit_sets(whole_class=True)
    method = UNSIR(noise_rows=4, noise_steps=3, copies=2)
    work = method.work(net, forget, retain)
    work.place()
    method.noise(work)
    assert all(value.grad is None for value in net.parameters())


@pytest.mark.skipif(find_spec("supreme") is None, reason="supreme-unlearning is not installed")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case["function"] in ("finetune", "neg_grad", "scrub")], ids=label
)
def test_the_package_itself_gives_these_weights_in_a_sweeps_hands(case, capfd):
    """With all rows in one batch their order is nothing but rounding."""
    net, environment, modules = edit_net(), dict(os.environ), set(sys.modules)
    SupremeMethod(function=case["function"], batch_size=48, options=case["options"]).apply(net, *edit_sets())
    assert distance(net.state_dict(), case) < TOLERANCE
    assert dict(os.environ) == environment
    assert not {"wandb", "debugpy"} & (set(sys.modules) - modules)
    assert capfd.readouterr().out == ""
