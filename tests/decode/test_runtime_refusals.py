import re

import numpy as np
import pytest
import torch
from targets import make_target, start
from torch import nn
from transformers import DynamicCache, StaticCache

from unwrite.decode import DraftModel, PromptLookup, generate, why_plain
from unwrite.decode.engine.transformers.runtime import TransformersRuntime, check_model
from unwrite.decode.engine.tree import DraftTree
from unwrite.errors import MethodError, ModelError


def small(kind, **options):
    import transformers as hf

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(hf, f"{kind}Config")(
        **sizes | {"vocab_size": 67, "head_dim": 8, "num_key_value_heads": 2} | options
    )
    return getattr(hf, f"{kind}ForCausalLM")(config).eval()


PLAIN_ONLY = {
    "Mamba": ({"state_size": 4}, "MambaForCausalLM keeps a recurrent state, which cannot be rolled back"),
    "Bloom": (
        {"n_layer": 1, "n_head": 2},
        "BloomForCausalLM takes no position ids, and the nodes of a tree share some",
    ),
    "Falcon": (
        {"alibi": True},
        r"FalconForCausalLM counts distances in columns \(ALiBi\), and the nodes of a tree share some",
    ),
}


@pytest.fixture(params=PLAIN_ONLY)
def plain_only(request):
    import transformers as hf

    options, reason = PLAIN_ONLY[request.param]
    sizes = {"vocab_size": 67, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(hf, f"{request.param}Config")(**sizes | options)
    return getattr(hf, f"{request.param}ForCausalLM")(config).eval(), reason


def test_a_model_without_trees_says_why_and_refuses_a_strategy_that_drafts(plain_only):
    model, reason = plain_only
    assert re.match(f"{reason}.$", why_plain(model))
    with pytest.raises(ModelError, match=f"^{reason}: PromptLookup cannot draft for it. Use Plain\\(\\)"):
        generate(TransformersRuntime(model), [5, 6, 7], PromptLookup())
    with pytest.raises(ModelError, match=f"^{reason}"):
        TransformersRuntime(model).prefill([np.array([5, 6, 7])], 8)


def test_a_draft_model_without_trees_is_refused(plain_only):
    model, _ = plain_only
    target = make_target("llama")
    with pytest.raises(MethodError, match="the draft model decodes plainly"):
        generate(TransformersRuntime(target), [5, 6, 7], DraftModel(draft_model=model))


def test_a_window_that_a_text_may_fit_in_refuses_nothing():
    for model in (
        small("Mistral", sliding_window=16),
        small("Qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1),
        small("Qwen2", use_sliding_window=False, sliding_window=16),
        small("Mistral", sliding_window=None),
    ):
        assert why_plain(model) is None


def test_a_window_too_short_for_any_draft_says_so():
    assert why_plain(small("Mistral", sliding_window=7)) == (
        "MistralForCausalLM has layers that see only the last 7 tokens."
    )


def test_refuses_an_encoder_decoder():
    import transformers as hf

    config = hf.T5Config(vocab_size=67, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    with pytest.raises(ModelError, match="encoder-decoder"):
        check_model(hf.T5ForConditionalGeneration(config))


def test_an_attention_that_takes_no_mask_says_what_to_call():
    model = make_target("llama")
    model.config._attn_implementation = "flash_attention_2"
    # Where its kernels are not installed, not even its own steps run.
    with pytest.raises(
        ModelError, match=r"'flash_attention_2', which takes no tree's mask; call model.set_attn_implementation"
    ):
        why_plain(model)


def test_refuses_caches_that_cannot_roll_back():
    model = make_target("llama")
    with pytest.raises(ModelError, match="static"):
        TransformersRuntime(model, cache=StaticCache(config=model.config, max_cache_len=8))
    with pytest.raises(ModelError, match="tuple"):
        TransformersRuntime(model, cache=())
    with pytest.raises(ModelError, match="offloaded"):
        TransformersRuntime(model, cache=DynamicCache(config=model.config, offloading=True))


def test_refuses_learned_prompts():
    from peft import PromptTuningConfig, get_peft_model

    model = make_target("llama")
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    refused = []

    def custom(model, input_ids, **_):
        with pytest.raises(ModelError, match="learned prompts") as caught:
            TransformersRuntime(model)
        refused.append(caught)
        return input_ids

    tuned.generate(input_ids=torch.tensor([[5, 6]]), custom_generate=custom)
    assert refused


def test_refuses_what_is_not_there_and_says_what_is():
    runtime, _ = start(make_target("llama"), [np.arange(3, 12)])
    with pytest.raises(MethodError, match="fused, stock"):
        runtime.use("packed")
    with pytest.raises(MethodError, match="layer:9"):
        runtime.forward(DraftTree.chain(5, []), frozenset({"layer:9"}))
    with pytest.raises(MethodError, match="graft"):
        runtime.forward(DraftTree.chain(5, []), graft=object())
    with pytest.raises(MethodError, match="sometimes"):
        TransformersRuntime(make_target("llama"), pack="sometimes")
    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        TransformersRuntime(nn.Linear(2, 2))
