"""How far trees go is decided once a kind of model, by its config and a small tree, and a model that breaks trees is seen."""

import pytest
import torch
from architectures import make
from tabular import Scripted, junk
from targets import FAMILIES, VOCAB, make_target
from transformers import LlamaForCausalLM

from conftest import make_llama
from unwrite.decode import Plain, why_plain
from unwrite.decode.engine.transformers import support, tree_check
from unwrite.decode.engine.transformers.support import support_of
from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel


class Blind(LlamaForCausalLM):
    """Sees every node of a tree from every other."""

    def forward(self, *args, attention_mask=None, position_ids=None, **kwargs):
        mask = None if attention_mask is not None and attention_mask.ndim == 4 else attention_mask
        return super().forward(*args, attention_mask=mask, position_ids=position_ids, **kwargs)


class Counting(LlamaForCausalLM):
    """Counts positions in columns, whatever it is told."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class Forgetful(LlamaForCausalLM):
    """Takes no mask of four dimensions."""

    def forward(self, *args, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is not None and attention_mask.ndim == 4:
            raise IndexError("too many dimensions\nfor this model")
        return super().forward(*args, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


class Silent(LlamaForCausalLM):
    """Never says the first tokens."""

    def forward(self, *args, attention_mask=None, position_ids=None, **kwargs):
        output = super().forward(*args, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        output.logits[..., :3] = float("-inf")
        return output


class Torn(LlamaForCausalLM):
    """Says some tokens in a tree only."""

    def forward(self, *args, attention_mask=None, position_ids=None, **kwargs):
        output = super().forward(*args, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        if attention_mask is None or attention_mask.ndim == 2:
            output.logits[..., :3] = float("-inf")
        return output


BROKEN = {
    Blind: "Blind gives other logits in a tree than in its own steps.",
    Counting: "Counting gives other logits for a prompt behind padding than for the prompt alone.",
    Torn: "Torn gives other logits in a tree than in its own steps.",
    Forgetful: "Forgetful takes no tree (IndexError: too many dimensions).",
}


def of_class(kind):
    model = make_llama()
    model.__class__ = kind
    return model


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_that_breaks_trees_is_seen_and_writes_plainly(kind):
    model = of_class(kind)
    assert why_plain(model) == BROKEN[kind]
    ids, options = torch.tensor([[5, 6, 7, 5, 6]]), {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, custom_generate=Plain(), **options), model.generate(ids, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_trees_in_any_precision(family, dtype):
    model = make_target(family).to(dtype)
    assert tree_check.disagreement(model) == ""
    assert support_of(model) == support.Support()


def test_a_model_that_takes_tokens_out_of_the_choice_takes_trees():
    model = of_class(Silent)
    assert tree_check.disagreement(model) == ""
    assert why_plain(model) is None


def test_a_guarded_model_takes_trees():
    assert why_plain(LogitDifferenceModel(make_llama(0), make_llama(1))) is None


def test_a_guarded_model_is_limited_by_the_model_inside():
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    target, assistant = (
        MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=2, sliding_window=window)) for window in (16, 12)
    )
    assert support_of(LogitDifferenceModel(target, assistant)).limit == 12


def test_the_check_runs_once_a_kind_of_model(monkeypatch):
    checked = []
    monkeypatch.setattr(tree_check, "disagreement", lambda model: checked.append(model) or "")
    monkeypatch.setattr(support, "_KNOWN", {})
    first, second = make_llama(0), make_llama(1)
    for model in (first, second, first):
        why_plain(model)
    assert checked == [first]
    second.config.rope_parameters = dict(second.config.rope_parameters, rope_theta=9.0)
    why_plain(second)
    assert checked == [first, second]


def test_a_fault_is_not_remembered(monkeypatch):
    monkeypatch.setattr(support, "_KNOWN", {})
    monkeypatch.setattr(tree_check, "disagreement", lambda model: "takes no tree (out of memory)")
    monkeypatch.setattr(tree_check, "own_fault", lambda model: "out of memory")
    model = make_llama()
    assert support_of(model).fault == "out of memory"
    monkeypatch.undo()
    assert support_of(model).fault == ""


def test_the_check_leaves_random_numbers_and_training_as_they_are():
    model = make_llama()
    model.train()
    model.model.layers[0].eval()
    flags, state = [module.training for module in model.modules()], torch.get_rng_state()
    assert tree_check.disagreement(model) == ""
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


LIMITS = {  # tokens of a text, columns of a cache with its largest tree
    "llama": (None, None),
    "mistral": (16, None),
    "mistral without window": (None, None),
    "qwen2": (None, None),
    "qwen2 mixed": (16, None),
    "phi3 longrope": (24, None),
    "phi3 longrope and window": (16, None),
    "llama dynamic rope": (24, None),
    "gpt_neo": (16, 16),
    "gpt_neo global": (None, 160),
    "doge": (16, 16),
    "llama4_text": (16, 8191),
    "llama4 tuned": (19, 19),
    "gemma3n_text shared": (16, None),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_read_from_config_and_modules(name):
    found = support_of(make(name))
    assert (found.limit, found.columns) == LIMITS[name]


def test_trees_stay_within_the_columns_of_a_fixed_mask():
    model, strategy = make("gpt_neo global"), Scripted(junk(VOCAB, nodes=70), cost_model=False)
    ids = torch.randint(3, VOCAB, (1, 100), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(ids, custom_generate=strategy, **options), model.generate(ids, **options))


def test_nothing_is_drafted_where_a_fixed_mask_has_no_columns_for_the_largest_tree():
    model = make("gpt_neo")
    assert support_of(model).columns == 16
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    for budget, drafts in ((10, True), (11, False)):
        strategy = Scripted(junk(VOCAB, nodes=3), cost_model=False, budget=budget)
        out = model.generate(
            ids, max_new_tokens=4, do_sample=False, custom_generate=strategy, return_dict_in_generate=True
        )
        assert (max(out.stats.rows) > 1) == drafts, budget
