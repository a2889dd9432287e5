"""Run by torchrun: trains each case with its weights sharded over the processes, and saves what every process has afterwards.

PYTHONPATH=tests torchrun --nproc-per-node 2 tests/forget/fsdp_processes.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from forgetting import KillAt, train, weights
from peft import LoraConfig
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.forget import (
    NPO,
    RMU,
    UNDIAL,
    CodeEraser,
    GradientAscent,
    GradientDifference,
    KLAscent,
    Phase,
    SimNPO,
    Smooth,
    StopWhenForgotten,
)
from unwrite.forget.engine.masking import KeepMask

ADAMW = {"optim": "adamw_torch", "lr_scheduler_type": "linear"}


class InTwoPhases(GradientDifference):
    """The objective twice, the second time with an optimiser of its own."""

    def phases(self, work):
        return [Phase("paired", self.total_loss), Phase("paired", self.total_loss, optimiser=momentum, lr=0.5)]


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


def adapters():
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def mask():
    """About half of the weights of each MLP and of the head, the same in every process."""
    drawn = torch.Generator().manual_seed(1)
    named = [(name, p) for name, p in make_llama().named_parameters() if "mlp" in name or "lm_head" in name]
    return KeepMask({name: torch.rand(p.shape, generator=drawn) < 0.5 for name, p in named})


def stop():
    """Measures the sharded model after each step."""
    return StopWhenForgotten(make_tokenizer(), {"forget": make_examples("forget", 16)}, target=1e-6, every=1)


# Rates such that three steps move a weight by a hundredth or so, a thousand times what is tolerated.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient ascent": (GradientAscent(), {}),
    "gradient difference": (GradientDifference(), {"learning_rate": 0.1}),
    "kl ascent": (KLAscent(), {}),
    "npo": (NPO(), {}),
    "npo with kl": (NPO(retain_loss="kl"), {}),
    "simnpo": (SimNPO(), {}),
    "undial": (UNDIAL(), {"learning_rate": 1.0}),
    "rmu": (RMU(layer=1), {"learning_rate": 10.0}),
    "rmu with nll": (RMU(layer=1, retain_loss="nll"), {"learning_rate": 1.0}),
    "codeeraser": (CodeEraser(on="all", retain_loss="none"), {}),
    "adamw": (NPO(), ADAMW),
    "clipped": (NPO(), {"max_grad_norm": 0.05, "learning_rate": 1.0}),
    "accumulated": (NPO(), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "tied": (NPO(), {"tied": True}),
    "adapters": (NPO(retain_loss="kl"), {"peft_config": adapters, "learning_rate": 0.1}),
    "averaged": (Smooth(NPO(), by="wa", start=1, interval=1), {}),
    "masked": (NPO(), {"callback": mask, "weight_decay": 0.1, **ADAMW}),
    "measured": (NPO(), {"callback": stop}),
    "two phases": (InTwoPhases(), {"learning_rate": 0.1}),
}


class Witness(TrainerCallback):
    """The largest share of the parameters that this process held while it trained, and the passes that came to the head."""

    held = 0.0
    passes = 0

    def on_train_begin(self, args, state, control, model=None, **_):
        model.get_output_embeddings().register_forward_hook(self.count)

    def count(self, *_):
        self.passes += 1

    def on_step_begin(self, args, state, control, model=None, **_):
        sizes = [(p.to_local().numel() if isinstance(p, DTensor) else p.numel(), p.numel()) for p in model.parameters()]
        self.held = max(self.held, sum(mine for mine, _ in sizes) / sum(all_of_it for _, all_of_it in sizes))


def run_case(name: str, **options: Any) -> Any:
    """The model after three steps of eight rows, four of them in each of two processes."""
    objective, own = CASES[name]
    own = dict(own)
    model = make_llama(tie_word_embeddings=own.pop("tied", False))
    callbacks = [*options.pop("callbacks", ()), *([own.pop("callback")()] if "callback" in own else [])]
    if "peft_config" in own:
        own["peft_config"] = own["peft_config"]()
    steps = {"max_steps": 3, "max_grad_norm": 0.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    return train(
        objective, model, make_examples("forget", 16), make_examples("retain", 20), make_tokenizer(),
        callbacks=callbacks, **{**steps, **own, **options},
    )  # fmt: skip


def resumed(folder: Path, state_dict_type: str) -> dict[str, Any]:
    """A training that was killed before its third step and taken up again, and one taken up after it had ended."""
    options = {
        "fsdp": True, "fsdp_config": {"state_dict_type": state_dict_type}, "ddp_backend": "gloo",
        "output_dir": str(folder / state_dict_type), "save_strategy": "steps", "save_steps": 1,
    }  # fmt: skip
    try:
        run_case("adamw", callbacks=[KillAt(2)], **options)
    except KeyboardInterrupt:
        again = run_case("adamw", resume_from_checkpoint=True, fsdp_config={**options.pop("fsdp_config")}, **options)
    ended = run_case("adamw", resume_from_checkpoint=True, fsdp_config={"state_dict_type": state_dict_type}, **options)
    return {f"resumed {state_dict_type}": again, f"ended {state_dict_type}": ended}


def main() -> None:
    folder = Path(sys.argv[1])
    models, held, passes = {}, {}, {}
    for name in CASES:
        witness = Witness()
        models[name] = run_case(name, fsdp=True, ddp_backend="gloo", callbacks=[witness])
        held[name], passes[name] = witness.held, witness.passes
    rank = torch.distributed.get_rank()
    if rank == 0:
        models["npo"].save_pretrained(folder / "saved")
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        models |= resumed(folder, kind)
    witness = Witness()
    run_case("npo", ddp_backend="gloo", callbacks=[witness])
    held["replicated"] = witness.held
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as accelerate launch has it
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    witness = Witness()
    models["launched"] = run_case("npo", ddp_backend="gloo", callbacks=[witness])
    held["launched"] = witness.held
    assert torch.distributed.get_world_size() == 2
    assert not any(isinstance(p, DTensor) for model in models.values() for p in model.parameters())
    assert {type(model).__name__ for model in models.values()} == {"LlamaForCausalLM", "PeftModelForCausalLM"}
    flat = {f"{name}|{key}": t for name, model in models.items() for key, t in weights(model).items()}
    shares = {f"held|{name}": torch.tensor(share) for name, share in held.items()}
    counts = {f"passes|{name}": torch.tensor(count) for name, count in passes.items()}
    save_file(flat | shares | counts, folder / f"{rank}.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
