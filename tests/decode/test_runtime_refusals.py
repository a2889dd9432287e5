import numpy as np
import pytest
import torch
from targets import make_target, start
from torch import nn
from transformers import StaticCache

from unwrite.decode.engine.transformers_runtime import TransformersRuntime, check_model
from unwrite.decode.engine.tree import DraftTree
from unwrite.errors import MethodError, ModelError


def small(kind, **options):
    import transformers as hf

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(hf, f"{kind}Config")(
        **sizes | {"vocab_size": 67, "head_dim": 8, "num_key_value_heads": 2} | options
    )
    return getattr(hf, f"{kind}ForCausalLM")(config).eval()


def test_refuses_a_sliding_window_and_names_it():
    with pytest.raises(ModelError, match="last 16 tokens"):
        check_model(small("Mistral", sliding_window=16))
    with pytest.raises(ModelError, match="last 16 tokens"):
        check_model(small("Qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1))
    check_model(small("Qwen2", use_sliding_window=False, sliding_window=16))
    check_model(small("Mistral", sliding_window=None))


def test_refuses_a_recurrent_model():
    import transformers as hf

    mamba = hf.MambaForCausalLM(hf.MambaConfig(vocab_size=67, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="Mamba"):
        check_model(mamba)


def test_refuses_an_encoder_decoder():
    import transformers as hf

    config = hf.T5Config(vocab_size=67, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    with pytest.raises(ModelError, match="encoder-decoder"):
        check_model(hf.T5ForConditionalGeneration(config))


def test_refuses_a_model_without_position_ids():
    import transformers as hf

    config = hf.BloomConfig(vocab_size=67, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(ModelError, match="position ids"):
        check_model(hf.BloomForCausalLM(config))


def test_refuses_an_attention_that_takes_no_mask():
    model = make_target("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="set_attn_implementation"):
        check_model(model)


def test_refuses_caches_that_cannot_roll_back():
    model = make_target("llama")
    with pytest.raises(ModelError, match="static"):
        check_model(model, StaticCache(config=model.config, max_cache_len=8))
    with pytest.raises(ModelError, match="tuple"):
        check_model(model, ())


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
