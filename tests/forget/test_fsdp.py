"""FSDP: weights sharded over two processes give what one process gives, and a whole model comes back to both."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forgetting import train, weights
from fsdp_processes import CASES, run_case
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.training_args import ParallelMode

from conftest import make_llama
from unwrite.errors import MethodError, ModelError
from unwrite.forget import NPO
from unwrite.forget.engine.text import fsdp

ATOL = 1e-5  # sums over two processes round otherwise than over one; measured: 4e-7 at most


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes leave behind."""
    folder = tmp_path_factory.mktemp("fsdp")
    here = Path(__file__).parent
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
        "UNWRITE_CACHE": str(folder / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(here / "fsdp_processes.py"), str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def processes(folder):
    """What each of the two has, by case and weight."""
    return [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


def of(case, saved):
    return {name.partition("|")[2]: t for name, t in saved.items() if name.partition("|")[0] == case}


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=ATOL, msg=lambda text, name=name: f"{name}: {text}")


def one_process(case):
    """The same eight rows a step in one process, in one batch."""
    return run_case(case, per_device_train_batch_size=8, gradient_accumulation_steps=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_two_sharded_processes_give_the_weights_of_one(case, processes):
    alone = weights(one_process(case))
    assert_close(of(case, processes[0]), alone)
    before = weights(make_llama())
    moved = [(tensor - before[name]).abs().max() for name, tensor in alone.items() if name in before]
    # peft draws one factor of an adapter and leaves the other at zero.
    grown = [tensor.abs().max() for name, tensor in alone.items() if "lora_B" in name]
    assert max(grown or moved) > 100 * ATOL


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_process_held_half_of_the_weights_and_whole_ones_without_fsdp(processes):
    for saved in processes:
        held = {case: float(share) for case, share in of("held", saved).items()}
        assert held.pop("replicated") == 1
        assert held.keys() == {*CASES, "launched"}
        assert all(0.4 < share < 0.6 for share in held.values()), held


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sharded_pass_goes_to_its_end_though_only_a_layer_is_read(processes):
    """torch leaves the state of a sharded model undefined where a pass is cut short, as others are."""
    assert int(of("passes", processes[0])["rmu"]) == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_processes_get_the_same_whole_model(processes):
    first, second = ({n: t for n, t in saved.items() if not n.startswith(("held|", "passes|"))} for saved in processes)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_comes_back_is_stored_and_loaded_as_any_model(folder, processes, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder / "saved")
    assert all(torch.equal(tensor, of("npo", processes[0])[name]) for name, tensor in weights(model).items())
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2).shape == (1, 4)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
@pytest.mark.parametrize("how", ["resumed", "ended"])
def test_a_training_taken_up_again_is_the_uninterrupted_one(how, kind, processes):
    again, whole = of(f"{how} {kind}", processes[0]), of("adamw", processes[0])
    assert again.keys() == whole.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_accelerate_launch_asks_for_it_as_the_arguments_do(processes):
    assert_close(of("launched", processes[0]), of("npo", processes[0]))


def test_one_process_is_refused(forget, retain, tokenizer, tiny_llama):
    before = weights(tiny_llama)
    with pytest.raises(MethodError, match="over several processes, and this is one alone"):
        train(NPO(), tiny_llama, forget, retain, tokenizer, fsdp=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tiny_llama).items())


def arguments(**differences):
    """Those of one of several processes, as far as FSDP is concerned."""
    several = {"parallel_mode": ParallelMode.DISTRIBUTED, "device": torch.device("cpu")}
    return SimpleNamespace(**{"fsdp": True, "fsdp_config": {"version": 2}, **several, **differences})


def test_version_one_is_refused(monkeypatch):
    with pytest.raises(MethodError, match="FSDP of version 1 is not supported"):
        fsdp.check(arguments(fsdp_config={"version": 1}), make_llama())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(MethodError, match="or FSDP_VERSION where accelerate launch asks for it"):
        fsdp.check(arguments(fsdp=None, fsdp_config=None), make_llama())
    monkeypatch.setenv("FSDP_VERSION", "2")
    fsdp.check(arguments(fsdp=None, fsdp_config=None), make_llama())


def test_a_process_without_the_weights_is_refused():
    with pytest.raises(ModelError, match="set FSDP_CPU_RAM_EFFICIENT_LOADING to false"):
        fsdp.check(arguments(), make_llama().to("meta"))


def test_what_fails_in_training_leaves_the_model_as_it_was():
    model, before = make_llama(), weights(make_llama())

    def fail():
        with fsdp.sharded(model, arguments()) as tree:
            tree.lm_head.weight = torch.nn.Parameter(tree.lm_head.weight + 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_what_was_trained_goes_back_into_the_same_parameters():
    model = make_llama(tie_word_embeddings=True)
    before = dict(model.named_parameters())
    with fsdp.sharded(model, arguments()) as tree:
        assert tree is not model
        assert tree.lm_head.weight is tree.model.embed_tokens.weight
        tree.model.norm.weight = torch.nn.Parameter(torch.full_like(tree.model.norm.weight, 3.0))
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert (model.model.norm.weight == 3).all()
