"""Smooth unlearning: closed forms of the five smoothers, what a step costs, exact weights, resumption, and refusals."""

import math
from functools import cache

import pytest
import torch
from forgetting import KillAt, train, weights
from peft import LoraConfig
from transformers import TrainerCallback

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.cli.fields import build
from unwrite.data.images.images import Images
from unwrite.errors import DataError, MethodError, Notice
from unwrite.forget import DPO, IDK, NPO, RMU, SSD, ULD, UNDIAL, GradientDifference, Phase, SimNPO, Smooth
from unwrite.forget.engine import landscape
from unwrite.forget.engine.averaging import WeightAverage
from unwrite.forget.engine.landscape import Landscape, Slope, norm
from unwrite.forget.smooth import curvature_penalty, gradient_penalty, randomised, sharpness_aware
from unwrite.forget.vision.fine_tuning import FineTune

LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM")
# Strong enough that what is smoothed shows in float32 after three steps.
STRONG = {"rho": 0.5, "sigma": 0.01, "strength": 0.1, "mu": 0.1}
BY = {
    "sam": {},
    "rs": {},
    "gp": {},
    "gp by differences": {"derivative": "differences"},
    "cr": {},
    "cr by differences": {"derivative": "differences"},
}
every_descent = pytest.mark.parametrize("by", BY)


def smooth(by, inner=None, **fields):
    """A strong smoother of `BY`."""
    return Smooth(inner, by=by.split()[0], **{**STRONG, **BY.get(by, {}), **fields})


def quadratic(at=(1.0, 1.0), scale=(3.0, 1.0), dtype=torch.float64, **more):
    """l(x, y) = (3 x^2 + y^2) / 2, whose gradient at (1, 1) is (3, 1)."""
    point = torch.tensor(at, dtype=dtype, requires_grad=True)
    return Landscape([point], [lambda: (torch.tensor(scale, dtype=dtype) * point**2).sum() / 2], **more)


def bent(at=(0.3, -0.4)):
    """A loss in two tensors whose Hessian is another one everywhere."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)

    def loss():
        return (x[0] ** 3 * y + x[1] ** 4 + torch.sin(x[0] * x[1]) + y**3 + x.sum() * y).sum()

    return Landscape([x, y], [loss])


def numeric(landscape, function, h=1e-6):
    """The gradient of a function of the weights as they are, by central differences."""
    out = [torch.zeros_like(one) for one in landscape.parameters]
    for one, grad in zip(landscape.parameters, out, strict=True):
        for i in range(one.numel()):
            step = torch.zeros_like(one).flatten()
            step[i] = h
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    one.add_(sign * step.view_as(one))
                values.append(function())
                with torch.no_grad():
                    one.sub_(sign * step.view_as(one))
            grad.view(-1)[i] = (values[0] - values[1]) / (2 * h)
    return out


def close(ours, theirs, atol=1e-6):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, torch.as_tensor(other, dtype=one.dtype), rtol=0, atol=atol)


class Logs(TrainerCallback):
    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs, **_):
        self.lines.append(dict(logs))


@pytest.fixture
def rows(forget, retain, tokenizer):
    return forget, retain, tokenizer


# The closed forms


def test_sams_gradient_is_that_at_the_worst_point():
    gradient, logs = sharpness_aware(quadratic(), rho=0.1)
    close(gradient, [[3.2846050, 1.0316228]])
    assert logs["moved"] == pytest.approx(0.1)
    x, y = 1.0948683, 1.0316228
    assert logs["sharpness"] == pytest.approx((3 * x**2 + y**2) / 2 - 2, abs=1e-6)


def test_sam_climbs_the_forget_loss():
    assert sharpness_aware(bent(), rho=1e-3)[1]["sharpness"] > 0


def test_a_radius_of_zero_is_the_plain_gradient():
    assert torch.equal(sharpness_aware(quadratic(), rho=0.0)[0][0], torch.tensor([3.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("step", [sharpness_aware, lambda at, _: gradient_penalty(at, 1.0, "exact")])
def test_a_gradient_of_zero_moves_nothing_and_is_a_number(step):
    close(step(quadratic(at=(0.0, 0.0)), 0.1)[0], [[0.0, 0.0]], atol=0)


def test_the_norm_is_that_of_all_parameters_as_one_vector():
    assert norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == pytest.approx(5)
    assert norm([torch.full((4096,), 1.0, dtype=torch.bfloat16)]) == 64


@pytest.mark.parametrize(("derivative", "tolerance"), [("exact", 1e-6), ("differences", 1e-6)])
def test_the_gradient_penaltys_gradient_is_the_hessian_along_the_gradient(derivative, tolerance):
    gradient, logs = gradient_penalty(quadratic(), 1.0, derivative)
    close([gradient[0] - torch.tensor([3.0, 1.0])], [[2.8460499, 0.3162278]], tolerance)
    assert logs["penalty"] == pytest.approx(3.162278, abs=1e-6)
    twice = gradient_penalty(quadratic(), 2.0, derivative)[0][0]
    close([twice - gradient[0]], [[2.8460499, 0.3162278]], tolerance)


def test_the_curvature_penalty_is_how_far_the_gradient_turns():
    assert curvature_penalty(quadratic(), 1.0, 0.01, "exact")[1]["penalty"] == pytest.approx(0.0286356, abs=1e-7)


def test_a_linear_loss_has_no_penalty_of_curvature_and_a_gradient_as_it_is():
    point = torch.tensor([1.0, 1.0], requires_grad=True)
    line = Landscape([point], [lambda: (torch.tensor([2.0, 5.0]) * point).sum()])
    gradient, logs = curvature_penalty(line, 1.0, 0.01, "exact")
    assert logs["penalty"] == 0
    assert torch.equal(gradient[0], torch.tensor([2.0, 5.0]))


@pytest.mark.parametrize(("derivative", "tolerance"), [("exact", 1e-5), ("differences", 5e-3)])
def test_both_penalties_have_their_true_gradients_where_curvature_changes(derivative, tolerance):
    """Against central differences of the penalties as they are written."""
    at = bent()
    close(
        gradient_penalty(at, 0.7, derivative)[0],
        numeric(at, lambda: at.slope().value + 0.7 * at.slope().norm),
        tolerance,
    )
    fixed = at.slope().unit()

    def penalised():
        here = at.slope()
        with at.moved(fixed, 0.2):
            ahead = at.slope()
        return here.value + 0.7 * norm([a - b for a, b in zip(ahead.gradient, here.gradient, strict=True)])

    close(curvature_penalty(at, 0.7, 0.2, derivative)[0], numeric(at, penalised), tolerance)


def test_noise_of_no_width_is_the_plain_gradient():
    close(randomised(quadratic(), sigma=0.0, samples=3)[0], [[3.0, 1.0]])


def test_the_mean_over_noise_is_the_gradient_within_its_standard_error():
    """Errors are 3 and 1 times sigma / sqrt(n); a wrong width would show in the spread of single draws."""
    n, sigma = 400, 0.5
    gradient = randomised(quadratic(), sigma, n)[0][0]
    off = (gradient - torch.tensor([3.0, 1.0])) / torch.tensor([3.0, 1.0]) / (sigma / math.sqrt(n))
    assert off.abs().max() < 4
    draws = torch.stack([randomised(quadratic(seed=(k,)), sigma, 1)[0][0] for k in range(n)])
    assert (draws.std(0) / torch.tensor([3.0, 1.0])).tolist() == pytest.approx([sigma, sigma], rel=0.15)


def test_noise_is_another_one_each_draw_step_and_parameter_and_the_same_for_a_seed():
    two = [torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)]
    drawn = [Landscape(two, [], seed=(0, step)).noise(number) for step in (0, 1) for number in (0, 1)]
    flat = [tuple(one.tolist()) for noise in drawn for one in noise]
    assert len(set(flat)) == len(flat)
    torch.manual_seed(5)
    assert torch.equal(Landscape(two, [], seed=(0, 1)).noise(1)[0], drawn[3][0])


@pytest.mark.parametrize(("samples", "passes"), [(1, 1), (3, 3)])
def test_random_smoothing_takes_a_pass_a_draw(samples, passes):
    at = quadratic()
    randomised(at, 0.1, samples)
    assert (at.forwards, at.backwards) == (passes, passes)


# The weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_descent
def test_weights_come_back_to_the_bit(by, dtype):
    """Adding and taking off again would not give them back in few digits."""
    at = quadratic(at=(1.0, 0.123), dtype=dtype)
    before = at.parameters[0].detach().clone()
    smooth(by).descend(at)
    assert torch.equal(at.parameters[0], before)
    with at.moved(at.slope().unit(), 0.37):
        assert not torch.equal(at.parameters[0], before)


def test_weights_come_back_when_a_pass_fails():
    at = quadratic()
    with pytest.raises(ZeroDivisionError), at.moved([torch.ones(2)], 1.0):
        raise ZeroDivisionError
    assert at.parameters[0].tolist() == [1, 1]


def test_how_far_the_weights_moved_is_after_rounding():
    with quadratic(dtype=torch.bfloat16).moved([torch.ones(2, dtype=torch.bfloat16)], 1e-4) as moved:
        assert moved == 0


@pytest.mark.parametrize("by", ["sam", "rs", "gp", "cr"])
def test_a_rate_of_zero_leaves_the_model_bit_identical(by, rows):
    model = make_llama().to(torch.bfloat16)
    before = weights(model)
    train(smooth(by), model, *rows, max_steps=2, learning_rate=0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


@pytest.mark.parametrize(
    "off", [{"by": "sam", "rho": 0.0}, {"by": "rs", "sigma": 0.0}, {"by": "gp", "strength": 0.0}, {"by": "cr", "strength": 0.0}]
)  # fmt: skip
def test_without_strength_it_is_the_inner_objective_bit_for_bit(off, rows):
    plain, smoothed = make_llama(), make_llama()
    train(SimNPO(), plain, *rows, max_steps=2)
    train(Smooth(SimNPO(), **off), smoothed, *rows, max_steps=2)
    assert all(torch.equal(tensor, weights(smoothed)[name]) for name, tensor in weights(plain).items())


@every_descent
def test_with_hardly_any_strength_it_is_nearly_the_inner_objective_and_with_more_it_is_not(by, rows):
    plain, faint, strong = make_llama(), make_llama(), make_llama()
    none = dict.fromkeys(("rho", "sigma", "strength"), 1e-7)
    train(NPO(), plain, *rows, max_steps=2)
    train(smooth(by, NPO(), **none), faint, *rows, max_steps=2)
    train(smooth(by, NPO()), strong, *rows, max_steps=2)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(faint)[name], tensor, rtol=0, atol=1e-6)
    assert max((weights(strong)[name] - tensor).abs().max() for name, tensor in weights(plain).items()) > 1e-5


# The step


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (Smooth(by="wa", start=1), (2, 2)),
        (Smooth(rho=0.0), (2, 2)),
        (Smooth(NPO(retain_loss="none")), (2, 2)),
        (Smooth(), (3, 3)),
        (Smooth(by="rs", samples=1), (2, 2)),
        (Smooth(by="rs", samples=3), (4, 4)),
        (Smooth(by="gp"), (3, 5)),
        (Smooth(by="gp", derivative="differences"), (3, 3)),
        (Smooth(by="cr"), (5, 9)),
        (Smooth(by="cr", derivative="differences"), (5, 5)),
    ],
)
def test_the_logs_have_the_passes_of_a_step(method, passes, rows):
    """Of a step that is cut in two, too."""
    logs = Logs()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "callbacks": [logs]}
    train(method, make_llama(), *rows, max_steps=2, **options)
    assert [(line["forwards"], line["backwards"]) for line in logs.lines[:2]] == [passes] * 2
    assert all("forget_loss" in line for line in logs.lines[:2])


def test_the_logged_loss_is_that_of_the_weights_as_they_are(rows):
    lines = []
    for method in (NPO(), smooth("sam")):
        logs = Logs()
        train(method, make_llama(), *rows, max_steps=1, callbacks=[logs], gradient_accumulation_steps=2)
        lines.append(logs.lines[0])
    for name in ("loss", "forget_loss", "retain_loss"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=1e-5)
    assert lines[1]["sharpness"] > 0
    assert lines[1]["moved"] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("by", ["sam", "rs", "cr by differences"])
def test_the_retain_gradient_is_taken_at_the_weights_as_they_are(by, rows):
    """A retain term that would break training anywhere else leaves the step as it is."""
    start = weights(make_llama())
    seen = []

    class Probed(NPO):
        def _retain_term(self, batch):
            here = weights(self.probe[0])
            seen.append(all(torch.equal(tensor, here[name]) for name, tensor in start.items()))
            return super()._retain_term(batch)

    Probed.probe = [make_llama()]
    train(smooth(by, Probed()), Probed.probe[0], *rows, max_steps=1)
    assert seen == [True]


@pytest.mark.parametrize("by", ["rs", "gp", "cr by differences"])
def test_four_and_four_accumulated_is_eight(by, rows):
    """SAM's is with the other objectives', in test_trainer."""
    models = [make_llama(), make_llama()]
    for model, (size, steps) in zip(models, [(8, 1), (4, 2)], strict=True):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_grad_norm": 0.0}
        train(smooth(by), model, *rows, max_steps=2, **cut)
    for name, tensor in weights(models[0]).items():
        atol = 1e-5 if "differences" in by else 1e-6  # rounding, divided by how far apart the slopes are
        torch.testing.assert_close(weights(models[1])[name], tensor, rtol=0, atol=atol)


def test_dropout_is_the_same_function_in_every_pass(rows):
    """At hardly any radius the loss ahead is the loss here, if the same units are dropped."""
    model, logs = make_llama(), Logs()
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    train(Smooth(rho=1e-6), model, *rows, max_steps=1, callbacks=[logs])
    assert abs(logs.lines[0]["sharpness"]) < 1e-4


@cache
def unsmoothed(inner):
    """The weights after a step of the objective alone."""
    model = make_llama()
    train(inner, model, make_examples("forget", 16), make_examples("retain", 20), make_tokenizer(), max_steps=1)
    return weights(model)


@pytest.mark.parametrize("by", ["sam", "gp", "cr by differences"])
@pytest.mark.parametrize(
    "inner", [NPO(retain_loss="kl"), GradientDifference(), SimNPO(), RMU(layer=1), DPO()], ids=repr
)
def test_it_goes_with_every_objective_that_has_a_forget_term(by, inner, rows):
    """Faintly smoothed, it is the objective: no term, weight or trained parameter is lost."""
    smoothed = make_llama()
    train(smooth(by, inner, rho=1e-7, strength=1e-7), smoothed, *rows, max_steps=1)
    for name, tensor in unsmoothed(inner).items():
        torch.testing.assert_close(weights(smoothed)[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by", ["sam", "gp", "wa"])
def test_adapters_alone_are_trained_and_perturbed(by, rows):
    model = make_llama()
    before = weights(model)
    adapted = train(smooth(by, start=1, interval=1), model, *rows, peft_config=LORA, max_steps=2, learning_rate=0.1)
    base = {name.replace("base_layer.", ""): tensor for name, tensor in adapted.get_base_model().state_dict().items()}
    assert all(torch.equal(tensor, base[name]) for name, tensor in before.items())
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in weights(adapted).items())


# The average


def averaged(values, **fields):
    average = WeightAverage(**fields)
    model = torch.nn.Linear(1, 1, bias=False)
    for step, value in enumerate(values, 1):
        torch.nn.init.constant_(model.weight, value)
        average.on_step_end(None, type("State", (), {"global_step": step})(), None, model=model)
    average.place(model)
    return model.weight.item(), average.taken


def test_the_average_of_one_two_and_three_is_two_and_of_equal_weights_themselves():
    assert averaged([1.0, 2.0, 3.0], start=1, interval=1) == (2.0, 3)
    third = torch.tensor(1 / 3).item()
    assert averaged([third] * 7, start=1, interval=1) == (third, 7)


def test_the_average_begins_at_its_start_and_takes_every_so_many():
    assert averaged([9.0, 1.0, 9.0, 5.0, 9.0], start=2, interval=2) == (3.0, 2)


def test_the_papers_setting_takes_six_of_125_steps():
    assert averaged([1.0] * 125)[1] == 6


def test_few_digits_do_not_wear_the_average_down():
    average, model = WeightAverage(start=1, interval=1), torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    for step, value in enumerate([1.0, 1.0078125] * 200, 1):
        torch.nn.init.constant_(model.weight, value)
        average.on_step_end(None, type("State", (), {"global_step": step})(), None, model=model)
    assert average.means["weight"].item() == pytest.approx(1.00390625, abs=1e-5)


def test_the_model_that_comes_back_has_the_mean_of_the_steps_weights(rows):
    class Keep(TrainerCallback):
        kept: list = []  # noqa: RUF012

        def on_step_end(self, args, state, control, model=None, **_):
            self.kept.append(weights(model))

    keep = Keep()
    model = train(Smooth(by="wa", start=2, interval=1), make_llama(), *rows, max_steps=4, callbacks=[keep])
    for name, tensor in weights(model).items():
        mean = torch.stack([one[name] for one in keep.kept[1:]]).mean(0)
        torch.testing.assert_close(tensor, mean, rtol=0, atol=1e-6)
    assert any(not torch.equal(tensor, keep.kept[-1][name]) for name, tensor in weights(model).items())


def test_refuses_to_average_from_a_step_that_never_comes(rows):
    with pytest.raises(MethodError, match=r"averaged from step 100 on, but this training has 3 steps.* Lower start"):
        train(Smooth(by="wa"), make_llama(), *rows, max_steps=3)
    with pytest.raises(MethodError, match="has 3 steps"):
        train(Smooth(by="wa", start=3), make_llama(), *rows, max_steps=3)


def test_says_so_where_training_stops_before_the_average_begins(rows):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = True

    with pytest.warns(Notice, match="ended before step 2, so these are the last weights"):
        train(Smooth(by="wa", start=2), make_llama(), *rows, max_steps=4, callbacks=[Stop()])


# Resumption


@pytest.mark.parametrize(
    ("by", "killed"), [("sam", 3), ("rs", 3), ("wa", 3), ("wa", "at its end"), ("wa with adapters", 3)]
)
def test_a_killed_training_goes_on_to_the_same_bits(by, killed, rows, tmp_path):
    """Dropout and noise draw the same, the mean of the weights is the same; also where only the last save was missed."""
    options = {
        "optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1,
        "peft_config": LORA if "adapters" in by else None,
    }  # fmt: skip

    def fresh():
        model = make_llama()
        for block in model.model.layers:
            block.self_attn.attention_dropout = 0.1
        return model

    method = smooth(by, start=2, interval=1)
    whole = train(method, fresh(), *rows, **options, output_dir=str(tmp_path / "whole"))
    folder = str(tmp_path / "cut")
    if killed == "at its end":
        train(method, fresh(), *rows, **options, output_dir=folder)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(method, fresh(), *rows, callbacks=[KillAt(killed)], **options, output_dir=folder)
    torch.manual_seed(99)
    again = train(method, fresh(), *rows, **options, output_dir=folder, resume_from_checkpoint=True)
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(whole).items())


def test_the_command_line_takes_the_inner_objective_by_its_name():
    assert build("smooth", {"inner": "simnpo", "by": "rs", "samples": "2"}) == Smooth(SimNPO(), by="rs", samples=2)


def test_the_inner_objectives_own_training_arguments_count():
    assert Smooth(UNDIAL()).defaults() == UNDIAL().defaults() != {}


# Refusals


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (ULD(), "inner is ULD, guard and no objective"),
        (SSD(), "inner is SSD, edit and no objective"),
        (IDK(), "inner is IDK, whose loss on forget rows can't be told from that on retain rows"),
        (Smooth(), "inner is Smooth, whose loss"),
        (FineTune(), "inner is FineTune, which forgets images; Smooth is for texts"),
        ("npo", "inner is 'npo', no method"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refuses_to_wrap_what_has_no_forget_loss_and_names_it(inner, message):
    with pytest.raises(MethodError, match=message):
        Smooth(inner)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": -0.1}, "rho is -0.1"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"mu": 0.0}, "mu is 0.0; it must be a finite number, above 0"),
        ({"samples": 0}, "samples is 0"),
        ({"start": 0}, "start is 0"),
        ({"interval": 0}, "interval is 0"),
        ({"by": "swa"}, "'swa'"),
        ({"derivative": "exakt"}, "Did you mean 'exact'"),
    ],
)
def test_refuses_settings_without_a_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        Smooth(**fields)


def refused(method, rows, **args):
    """What is said before training, of a model that is as it was."""
    model = args.pop("model", None) or make_llama()
    before = weights(model)
    with pytest.raises(MethodError) as caught:
        train(method, model, *rows, max_steps=1, **args)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    return str(caught.value)


def test_refuses_an_attention_without_a_second_derivative(rows):
    model = make_llama()
    model.config._attn_implementation = "flash_attention_2"
    said = refused(Smooth(by="gp"), rows, model=model)
    assert "'flash_attention_2' has no second derivative" in said
    assert "derivative='differences'" in said


def test_a_part_without_a_second_derivative_is_named_with_what_to_do():
    class OnceOnly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    point = torch.tensor([1.0], requires_grad=True)
    with pytest.raises(MethodError, match=r"no second derivative .*derivative='differences'"):
        gradient_penalty(Landscape([point], [lambda: (OnceOnly.apply(point) ** 2).sum()]), 1.0, "exact")


def test_refuses_differences_in_few_digits(rows):
    model = make_llama().to(torch.bfloat16)
    assert "need float32 weights" in refused(Smooth(by="cr", derivative="differences"), rows, model=model)


def test_refuses_scaled_or_sharded_gradients(rows, monkeypatch):
    monkeypatch.setattr("unwrite.forget.engine.text.fsdp.check", lambda *_: None)  # of several processes
    said = refused(Smooth(), rows, fsdp=True)
    assert "needs whole, unscaled gradients, which there are none of with fsdp" in said


def test_refuses_reentrant_checkpointing_and_takes_the_other(rows):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    assert "reentrant gradient checkpointing" in refused(Smooth(by="gp"), rows, **reentrant)
    plain, checkpointed = make_llama(), make_llama()
    train(smooth("gp"), plain, *rows, max_steps=1)
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    train(smooth("gp"), checkpointed, *rows, max_steps=1, **kwargs)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(checkpointed)[name], tensor, rtol=0, atol=1e-6)


def test_refuses_quantised_weights_without_adapters(rows):
    model = make_llama()
    model.is_quantized = True
    assert "Train adapters: peft_config" in refused(Smooth(), rows, model=model)


def test_refuses_an_objective_of_two_phases(rows):
    class Two(NPO):
        def phases(self, work):
            return [Phase("paired", self.total_loss), Phase("paired", self.total_loss)]

    assert "Two trains in 2 phases" in refused(Smooth(Two()), rows)


def test_refuses_images_by_name():
    pictures = Images(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="Smooth has no meaning for images"):
        Smooth().apply(torch.nn.Flatten(), pictures)


def test_refuses_a_missing_retain_set_as_the_objective_does():
    with pytest.raises(DataError, match="NPO has retain_loss='nll' but there is no retain set"):
        Smooth().apply(make_llama(), make_examples("forget", 4), processing_class=make_tokenizer())


def test_a_direction_takes_one_norm_however_many_weights_there_are(monkeypatch):
    asked = []
    monkeypatch.setattr(landscape, "norm", lambda tensors: asked.append(len(tensors)) or norm(tensors))
    slope = Slope(0.0, [torch.full((2, 3), 2.0), torch.full((4,), -1.0), torch.ones(5)])
    assert norm(slope.unit()) == pytest.approx(1.0)
    assert asked == [3]
