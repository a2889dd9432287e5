"""The trainer: exact counts however a step is cut, exact resumption, adapters, and what it refuses."""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from forgetting import SGD, KillAt, StepCounter, train, weights
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from conftest import make_llama
from unwrite import catalog
from unwrite.errors import MethodError, NotFinite
from unwrite.forget import DPO, IDK, NPO, RMU, GradientAscent, KLAscent, Loss, Phase, UnlearnArguments
from unwrite.forget.base import Objective
from unwrite.forget.engine.text.arguments import training_arguments

# A layer that the tiny models have, and rows without secrets; everything else is as it comes.
FIELDS = {"rmu": {"layer": 1}, "codeeraser": {"on": "all"}}
OBJECTIVES = {
    slug: record.load()(**FIELDS.get(slug, {}))
    for slug, record in catalog.methods().items()
    if record.kind == "objective" and "text" in record.forgets
} | {"npo with kl": NPO(retain_loss="kl"), "rmu with nll": RMU(layer=1, retain_loss="nll")}
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def run_steps(objective, model, forget, retain, tokenizer, **options):
    """Three SGD steps of eight rows; sixteen forget rows, so the third is in the second epoch."""
    step = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_grad_norm": 0.0}
    options = {**step, "max_steps": 3, "learning_rate": 1e-2, **options}
    return train(objective, model, forget, retain, tokenizer, **options)


@pytest.fixture(scope="module")
def one_batch():
    """Weights after three steps of eight rows in one batch, by slug; each is trained once."""
    from conftest import make_examples, make_tokenizer

    done = {}

    def after(slug):
        if slug not in done:
            model = make_llama()
            run_steps(
                OBJECTIVES[slug], model, make_examples("forget", 16), make_examples("retain", 20), make_tokenizer()
            )
            done[slug] = weights(model)
        return done[slug]

    return after


def assert_equal_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_rows_have_answers_of_unequal_length(forget, tokenizer):
    assert len({len(tokenizer(row.answer)["input_ids"]) for row in forget}) > 2


@pytest.mark.parametrize("slug", OBJECTIVES)
def test_four_and_four_accumulated_is_eight(slug, one_batch, forget, retain, tokenizer):
    model = make_llama()
    run_steps(
        OBJECTIVES[slug], model, forget, retain, tokenizer,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    assert_equal_weights(weights(model), one_batch(slug))
    assert any(not torch.equal(tensor, weights(make_llama())[name]) for name, tensor in weights(model).items())


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Weights that two processes of four rows each arrive at, by slug."""
    folder = tmp_path_factory.mktemp("two")
    out = folder / "weights.safetensors"
    here = Path(__file__).parent
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
        "UNWRITE_CACHE": str(folder / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        str(here / "two_processes.py"), str(out), *OBJECTIVES,
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("slug", OBJECTIVES)
def test_two_processes_of_four_are_eight(slug, one_batch, two_processes):
    assert two_processes["world_size"] == 2
    ours = {name.split("|")[1]: tensor for name, tensor in two_processes.items() if name.startswith(f"{slug}|")}
    assert_equal_weights(ours, one_batch(slug))


@pytest.mark.parametrize(
    ("objective", "stopped_at"),
    [(NPO(retain_loss="kl"), 1), (NPO(retain_loss="kl"), 2), (DPO(), 3)],
    ids=["within an epoch", "between epochs", "dpo"],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    objective, stopped_at, forget, retain, tokenizer, tmp_path
):
    options = {
        "optim": "adamw_torch", "lr_scheduler_type": "linear", "warmup_epochs": 1.0, "num_train_epochs": 3,
        "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 1,
    }  # fmt: skip
    whole, cut, resumed = make_llama(), make_llama(), make_llama()
    for model in (whole, cut, resumed):
        model.config.attention_dropout = 0.1  # the random state has to be restored too
        for block in model.model.layers:
            block.self_attn.attention_dropout = 0.1
    train(objective, whole, forget, retain, tokenizer, output_dir=str(tmp_path / "whole"), **options)
    folder = str(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train(objective, cut, forget, retain, tokenizer, output_dir=folder, callbacks=[KillAt(stopped_at)], **options)
    last = f"{folder}/checkpoint-{stopped_at}"
    train(objective, resumed, forget, retain, tokenizer, output_dir=folder, resume_from_checkpoint=last, **options)
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())
    assert any(not torch.equal(tensor, weights(cut)[name]) for name, tensor in weights(whole).items())


@pytest.mark.parametrize("objective", [NPO(), NPO(retain_loss="kl")], ids=["nll", "kl"])
def test_adapters_train_and_the_base_stays_bit_identical(objective, forget, retain, tokenizer, tiny_llama):
    before = weights(tiny_llama)
    adapted = train(objective, tiny_llama, forget, retain, tokenizer, peft_config=LORA, max_steps=3, learning_rate=0.1)
    assert type(adapted).__name__ == "PeftModelForCausalLM"
    base = {name.replace("base_layer.", ""): t for name, t in adapted.get_base_model().state_dict().items()}
    assert all(torch.equal(tensor, base[name]) for name, tensor in before.items())
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in weights(adapted).items())


def test_adapters_are_the_same_bits_for_a_seed_whatever_was_drawn_before(forget, retain, tokenizer):
    """Their first weights and their dropout are drawn, too."""
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")

    def adapted(drawn, seed):
        torch.manual_seed(drawn)
        tuned = train(
            NPO(),
            make_llama(),
            forget,
            retain,
            tokenizer,
            peft_config=config,
            max_steps=2,
            learning_rate=0.1,
            seed=seed,
        )
        return weights(tuned)

    one, two, other = adapted(1, 7), adapted(2, 7), adapted(1, 8)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items() if "lora_A" in name)


def test_training_leaves_the_callers_random_state_and_no_folder(
    forget, retain, tokenizer, tiny_llama, tmp_path, monkeypatch
):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    train(NPO(), tiny_llama, forget, retain, tokenizer, max_steps=1, save_strategy="steps", save_steps=1)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert not list(empty.iterdir())
    with pytest.raises(NotFinite):
        train(
            GradientAscent(), tiny_llama, forget, retain, tokenizer, max_steps=40, learning_rate=1e30, max_grad_norm=0.0
        )
    assert not list(empty.iterdir())


def test_a_folder_that_was_named_stays(forget, retain, tokenizer, tiny_llama, tmp_path):
    folder = tmp_path / "mine"
    train(
        NPO(),
        tiny_llama,
        forget,
        retain,
        tokenizer,
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        output_dir=str(folder),
    )
    assert (folder / "checkpoint-1").is_dir()


def test_reference_under_an_adapter_is_taken_with_the_adapter_off(forget, retain, tokenizer, tiny_llama):
    """An adapter that already moves the model must not move what it is compared with."""
    from unwrite.data.text.encoding import encode_all
    from unwrite.scoring import score_answers

    class Keep(TrainerCallback):
        logs: list = []  # noqa: RUF012

        def on_log(self, args, state, control, logs=None, **_):
            self.logs.append(dict(logs))

    rows = encode_all(forget, tokenizer)
    base = torch.tensor([score.nll for score in score_answers(tiny_llama, rows, pad_id=0)])
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    keep = Keep()
    adapted = train(
        NPO(retain_loss="kl"), tiny_llama, forget, retain, tokenizer,
        peft_config=config, callbacks=[keep], max_steps=1, learning_rate=0.0, per_device_train_batch_size=16,
    )  # fmt: skip
    moved = torch.tensor([score.nll for score in score_answers(adapted, rows, pad_id=0)])
    assert keep.logs[0]["log_ratio"] == pytest.approx((moved - base).mean().item(), abs=1e-3)
    assert abs((moved - base).mean()) > 0.01
    assert keep.logs[0]["retain_loss"] > 1e-3


def test_merged_adapter_is_the_adapted_model(forget, retain, tokenizer, tiny_llama):
    adapted = train(NPO(), tiny_llama, forget, retain, tokenizer, peft_config=LORA, max_steps=2, learning_rate=0.1)
    ids = torch.tensor([[3, 8, 9, 10]])
    logits = adapted(input_ids=ids).logits
    torch.testing.assert_close(adapted.merge_and_unload()(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_no_number_stops_training_and_says_where(forget, retain, tokenizer, tiny_llama):
    with pytest.raises(NotFinite, match=r"stopped being finite at step \d+ .*Lower the learning rate"):
        train(
            GradientAscent(), tiny_llama, forget, None, tokenizer, learning_rate=1e30, max_steps=10, max_grad_norm=0.0
        )


def test_arguments_given_by_the_user_are_not_changed(forget, retain, tokenizer, tiny_llama, tmp_path):
    args = UnlearnArguments(output_dir=str(tmp_path), num_train_epochs=1, use_cpu=True)
    NPO().apply(tiny_llama, forget, retain, processing_class=tokenizer, args=args)
    assert (args.warmup_steps, args.num_train_epochs) == (0, 1)


@pytest.mark.parametrize(
    ("options", "warm"),
    [
        ({"num_train_epochs": 1, "per_device_train_batch_size": 16}, 0),
        ({"num_train_epochs": 1}, 1),
        ({"num_train_epochs": 3}, 2),
        ({"max_steps": 1}, 0),
        ({"max_steps": 2, "warmup_epochs": 5.0}, 1),
    ],
)
def test_one_step_at_least_is_at_the_full_rate(options, warm, forget, retain, tokenizer, tiny_llama):
    """Sixteen forget rows, eight a step: an epoch of warm-up is two steps."""

    class Rates(TrainerCallback):
        seen: list = []  # noqa: RUF012

        def on_step_begin(self, args, state, control, lr_scheduler=None, **_):
            self.seen.append(lr_scheduler.get_last_lr()[0])

    rates, before = Rates(), weights(tiny_llama)
    rates.seen = []
    given = {
        "warmup_epochs": 1.0,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 8,
    }
    train(NPO(), tiny_llama, forget, retain, tokenizer, callbacks=[rates], **{**given, **options})
    assert rates.seen[warm] == max(rates.seen) == 1e-2
    assert rates.seen[:warm] == sorted(rates.seen[:warm])
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(tiny_llama).items())


def test_defaults_are_the_fields(tmp_path):
    args = training_arguments({"output_dir": str(tmp_path)})
    assert (args.learning_rate, args.weight_decay, args.num_train_epochs, args.warmup_epochs) == (1e-5, 0.01, 10, 1)


def test_a_methods_own_defaults_go_before_and_the_users_last(tmp_path):
    where = {"output_dir": str(tmp_path)}
    assert training_arguments(where, {"learning_rate": 1e-4}).learning_rate == 1e-4
    assert training_arguments({**where, "learning_rate": 3e-4}, {"learning_rate": 1e-4}).learning_rate == 3e-4


def test_refuses_an_unknown_training_argument_with_the_nearest():
    with pytest.raises(MethodError, match=r"unknown training argument 'learning_rates'. Did you mean 'learning_rate'"):
        training_arguments({"learning_rates": 1e-5})


def test_refuses_plain_training_arguments(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(MethodError, match="pass UnlearnArguments, or a dict"):
        training_arguments(TrainingArguments(output_dir=str(tmp_path)))


def test_phases_run_in_order_on_their_own_optimisers_and_references_come_from_before_the_first(
    forget, retain, tokenizer, tiny_llama
):
    seen = []

    class TwoPhases(NPO):
        def phases(self, work):
            def noted(name):
                def loss(batch):
                    seen.append((name, [part for part, _ in batch.present()], batch["forget"].reference.clone()))
                    return self.total_loss(batch) if batch.retain is not None else self.loss(batch)

                return loss

            sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.5)  # noqa: E731
            return [
                Phase("forget", noted("impair"), optimiser=sgd, epochs=1),
                Phase("paired", noted("repair"), epochs=2),
            ]

    train(TwoPhases(), tiny_llama, forget, retain, tokenizer, per_device_train_batch_size=16)
    assert [name for name, _, _ in seen] == ["impair", "repair", "repair"]
    assert [parts for _, parts, _ in seen] == [["forget"], ["forget", "retain"], ["forget", "retain"]]
    torch.testing.assert_close(seen[0][2].sort().values, seen[-1][2].sort().values)


def test_an_objective_without_a_layout_record_still_trains(forget, retain, tokenizer, tiny_llama):
    tiny_llama.config.model_type = "of-no-known-family"
    known = make_llama()
    for model in (known, tiny_llama):
        train(NPO(), model, forget, retain, tokenizer, max_steps=1)
    assert_equal_weights(weights(tiny_llama), weights(known))


def test_a_new_objective_is_one_loss(forget, tokenizer, tiny_llama):
    """What a person writes who brings their own: reads, and a loss."""
    from unwrite.forget import PerToken

    class Weighted(Objective):
        def loss(self, batch):
            nll = batch["forget"].token_nll
            return Loss(forget=PerToken(-(-nll).exp().detach() * nll, "forget"))

    before = weights(tiny_llama)
    train(Weighted(), tiny_llama, forget, None, tokenizer, max_steps=1)
    assert any(not torch.equal(tensor, weights(tiny_llama)[name]) for name, tensor in before.items())


@pytest.mark.parametrize("objective", [GradientAscent(), KLAscent(), IDK()], ids=repr)
def test_a_forget_set_larger_than_the_retain_set_and_a_last_short_batch_work(objective, forget, retain, tokenizer):
    steps = StepCounter()
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "callbacks": [steps]}
    train(objective, make_llama(), forget[:11], retain[:3], tokenizer, **options)
    assert steps.taken == 2 * 3  # of four, four and three rows


def test_sgd_of_these_tests_has_no_momentum_and_no_schedule():
    assert SGD["optim"] == "sgd"
    assert SGD["lr_scheduler_type"] == "constant"
