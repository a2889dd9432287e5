"""Every causal architecture of transformers writes the text of `generate`, or is refused in one line.

Texts end before the window or switch, cross it while they are written, and begin behind it; alone and in a batch with padding. The
drafts hold right tokens among wrong ones, so that trees are accepted as deep as they may be.
"""

import re
import warnings

import numpy as np
import pytest
import torch
from architectures import NAMES, PLAIN, QUICK, REFUSED, TREES, UNMADE, VOCAB, make, verdict
from tabular import Scripted, junk
from transformers import GenerationConfig

from unwrite.decode import ADED, DraftTree, Plain, PromptLookup, TransformersRuntime, generate, why_plain
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.transformers.limits import Support
from unwrite.errors import ModelError

# Dynamic rope begins where the positions end, so that nothing is drafted there anyway.
WITH_A_LIMIT = [name for name in QUICK if name not in ("falcon alibi", "mamba", "jamba", "llama dynamic rope")]
CASES = {  # (length of the prompt, new tokens, padding of every row)
    "within": (5, 8, [0]),
    "across": (9, 20, [0]),
    "behind": (30, 6, [0]),
    "batch within": (6, 6, [0, 2]),
    "batch across": (9, 20, [0, 3, 1]),
    "batch behind": (30, 5, [5, 0]),
}

marked = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.fixture(autouse=True)
def _quiet():
    import transformers

    forget_knowledge()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity_warning()


def batch(length, padding, seed=0):
    ids = torch.randint(3, VOCAB, (len(padding), length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        ids[row, :count] = mask[row, :count] = 0
    return ids, mask


def written(model, ids, mask, new, strategy=None):
    torch.manual_seed(0)
    return model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, custom_generate=strategy)


def knowing(ids, padding, text, deepest=3):
    """Drafts of right tokens to come, up to so many levels of them, each among two wrong ones."""
    draw = np.random.default_rng(0)
    ahead = {}
    for row, count in enumerate(padding):
        whole = text[row, count:].tolist()
        for length in range(ids.shape[1] - count + 1, len(whole) + 1):
            ahead[tuple(whole[:length])] = whole[length:]

    def draft(committed, budget):
        tokens, parents, node = [int(committed[-1])], [-1], 0
        for token in ahead.get(tuple(committed.tolist()), [])[: draw.integers(1, deepest + 1)]:
            wrong = [int(other) for other in draw.integers(3, VOCAB, 2) if other != token]
            tokens += [*wrong, token]
            parents += [node] * (len(wrong) + 1)
            node = len(tokens) - 1
        return DraftTree.of([*tokens, 5], [*parents, int(draw.integers(len(parents)))])

    return Scripted(draft, cost_model=False)


@pytest.mark.parametrize("name", marked)
def test_the_text_is_that_of_generate_or_refused_in_one_line(name):
    what, _ = verdict(name)
    if what == UNMADE:
        pytest.skip(what)
    model = make(name)
    if what == REFUSED:
        with pytest.raises(ModelError, match=r"^[^\n]+$"):
            TransformersRuntime(model)
        return
    for case, (length, new, padding) in CASES.items():
        ids, mask = batch(length, padding)
        expected = written(model, ids, mask, new)
        assert torch.equal(written(model, ids, mask, new, Plain()), expected), case
        if what == PLAIN:
            with pytest.raises(ModelError, match=f"^{re.escape(why_plain(model)[:-1])}: ADED cannot draft for it"):
                written(model, ids, mask, new, ADED())
            continue
        others = [PromptLookup(cost_model=False), ADED()] if "across" in case else []
        for strategy in (knowing(ids, padding, expected), *others):
            assert torch.equal(written(model, ids, mask, new, strategy), expected), (case, strategy)


@pytest.mark.parametrize(
    "name", [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_tree_may_lie_beyond_the_last_position_while_its_nodes_stand_before_it(name):
    if verdict(name)[0] != TREES:
        pytest.skip("trees do not come so far")
    model, (ids, mask) = make(name), batch(140, [0])
    strategy = Scripted(junk(VOCAB, nodes=60), cost_model=False)
    assert torch.equal(written(model, ids, mask, 6, strategy), written(model, ids, mask, 6))


@pytest.mark.parametrize("name", WITH_A_LIMIT)
def test_without_the_limit_the_text_would_be_another(name):
    model = make(name)
    config = GenerationConfig(max_new_tokens=40)
    with torch.no_grad():  # a random model hardly minds where a token stands; one that attends sharply does
        for key, parameter in model.named_parameters():
            if re.search(r"q_proj|qkv_proj", key):
                parameter *= 8

    def differs(seed):
        ids, mask = batch(9, [0], seed)
        expected = written(model, ids, mask, 40)
        runtime = TransformersRuntime(model, support=Support())
        found = generate(runtime, ids, knowing(ids, [0], expected, 20), config).sequences[0]
        return found != expected[0, 9:].tolist()

    assert any(map(differs, range(8)))
