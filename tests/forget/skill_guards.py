"""What the tests of switched-off skills share: prompts, a model, and guards whose texts differ from its own."""

import pytest
import torch
from asked_prompts import batch

from helpers.tiny import lively, make_llama
from unwrite.forget.engine.text.activation_statistics import ActivationStatistics
from unwrite.forget.engine.text.adjusted_neurons import AdjustedNeuronsModel, NeuronRules
from unwrite.forget.engine.text.key_box import KeyBox
from unwrite.forget.engine.text.key_guarded import AbstainRules, KeyGuardedModel
from unwrite.forget.neuron_adjust import chosen, neuron_table, scores

PROMPTS = [[6, 7, 8, 9, 10], [1, 11, 30, 12], [20, 21, 22, 23, 24, 25, 26]]  # the second begins with BOS
REFUSAL = (5, 6, 2)
RULES = AbstainRules(REFUSAL)
NEW = 8


def padded(prompts, side="left"):
    return tuple(batch(prompts, side).values())


def new_tokens(model, prompts, **options):
    """What is written behind each prompt, with what pads it."""
    ids, mask = padded(prompts)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    rows = model.generate(input_ids=ids, attention_mask=mask, **options)
    return rows[:, ids.shape[1] :].tolist()


def rows_of(n=12):
    draw = torch.Generator().manual_seed(4)
    sizes = [3 + i % 7 for i in range(n)]
    return [[1, *torch.randint(3, 60, (size,), generator=draw).tolist()] for size in sizes]


def keys_of(model, ids, mask=None, layer=2):
    """[rows, length, width]: the keys of a batch."""
    seen = []
    module = model.model.layers[layer].mlp.down_proj
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    hook.remove()
    return seen[0]


def around(target, ids, at, **rules):
    """A guard whose box holds just the key of one token of a text."""
    key = keys_of(target, torch.tensor([ids]))[0, at]
    box = KeyBox(2, key.clone(), torch.ones_like(key), k=0.01, alpha=1.0)
    return KeyGuardedModel(target, box, AbstainRules(REFUSAL, **rules))


@pytest.fixture(scope="module")
def target():
    """Its texts change with every token."""
    return lively(make_llama(3, max_position_embeddings=64), 0.3)


@pytest.fixture(scope="module")
def neurons(target):
    """Half of the neurons, led far away, so that every text is another one."""
    rows = rows_of(40)
    forget, retain = (ActivationStatistics.fit(target, part, bos=1) for part in (rows[:20], rows[20:]))
    return neuron_table(forget, retain, chosen(scores(forget, retain, "difference"), 50))


@pytest.fixture
def moved(target, neurons):
    return AdjustedNeuronsModel(target, neurons, NeuronRules(seed=7))
