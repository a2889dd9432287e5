"""Run by torchrun: trains one method in each process's share of a step and saves the weights from the first.

PYTHONPATH=tests torchrun --nproc-per-node 2 tests/forget/two_processes.py OUT.safetensors SLUG...
"""

from __future__ import annotations

import sys

import torch
from forgetting import weights
from safetensors.torch import save_file
from test_trainer import OBJECTIVES, run_steps

from conftest import make_examples, make_llama, make_tokenizer


def main() -> None:
    out, slugs = sys.argv[1], sys.argv[2:]
    saved = {}
    for slug in slugs:
        model = make_llama()
        run_steps(
            OBJECTIVES[slug], model, make_examples("forget", 16), make_examples("retain", 20), make_tokenizer(),
            per_device_train_batch_size=4, ddp_backend="gloo",
        )  # fmt: skip
        assert torch.distributed.get_world_size() == 2
        saved |= {f"{slug}|{name}": tensor for name, tensor in weights(model).items()}
    if torch.distributed.get_rank() == 0:
        save_file(saved | {"world_size": torch.tensor(torch.distributed.get_world_size())}, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
