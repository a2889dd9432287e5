"""Released ARC encoders: converted weights give the official code's numbers, vectors, logits and loss alike.

The numbers are from kyutai-labs/ARC-Encoder (commit 3e04c97) on the CPU in single precision, its `Transformer`, `EmbProjector` and
`insert_embeds` as they are, with xformers' attention and masks written out densely. Weight n in order of names, entry k, is
0.3 sin(0.7 k + n), and 1 + 0.1 sin(k + n) in vectors.
"""

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from unwrite.compress import ArcEncoder, MixedRow, arc_from_native, mixed_inputs
from unwrite.compress.contexts.inputs import decoder_loss
from unwrite.compress.contexts.native import rotated_half, transformers_names
from unwrite.errors import ModelError

TEXTS = ([3, 7, 1, 12, 5, 19, 8, 2, 4], [6, 11, 0, 14, 17])
INNER = {
    "attention.wk": (8, 16),
    "attention.wo": (16, 16),
    "attention.wq": (16, 16),
    "attention.wv": (8, 16),
    "attention_norm": (16,),
    "feed_forward.w1": (24, 16),
    "feed_forward.w2": (16, 24),
    "feed_forward.w3": (24, 16),
    "ffn_norm": (16,),
}
# Of the first text's first two vectors and the second text's last one, the first four numbers.
VECTORS = {
    (0, 0): [-0.194631, -0.013604, 0.516807, 0.015524],
    (0, 1): [-0.560563, -0.381277, 0.5114, 0.217876],
    (1, 1): [1.620259, 1.139861, -0.977299, -1.410273],
}


def weights(shapes):
    state = {}
    for number, name in enumerate(sorted(shapes)):
        entry = torch.arange(torch.Size(shapes[name]).numel(), dtype=torch.float64).view(shapes[name])
        vector = len(shapes[name]) == 1
        wave = 1 + 0.1 * torch.sin(entry + number) if vector else 0.3 * torch.sin(0.7 * entry + number)
        state[name] = wave.float()
    return state


def embedder():
    shapes = {f"{kind}_tok.{number}.weight": (1, 16) for kind in ("cont", "rec") for number in (0, 1)}
    shapes |= {f"layers.{layer}.{part}.weight": shape for layer in range(3) for part, shape in INNER.items()}
    return weights(shapes | {"tok_embeddings.weight": (20, 16)})


def bridge():
    return weights({f"{one}.layer{two}.weight": shape for one in (0, 1) for two, shape in ((1, (6, 16)), (2, (12, 6)))})


def decoder():
    """The official decoder of the same numbers, 12 wide with two layers, as transformers has it."""
    sizes = {"wk": (12, 12), "wo": (12, 12), "wq": (12, 12), "wv": (12, 12)}
    shapes = {f"layers.{layer}.attention.{part}.weight": shape for layer in (0, 1) for part, shape in sizes.items()}
    for layer in (0, 1):
        shapes |= {f"layers.{layer}.{norm}.weight": (12,) for norm in ("attention_norm", "ffn_norm")}
        shapes |= {f"layers.{layer}.feed_forward.{part}.weight": (20, 12) for part in ("w1", "w3")}
        shapes[f"layers.{layer}.feed_forward.w2.weight"] = (12, 20)
    native = weights(shapes | {"norm.weight": (12,), "output.weight": (18, 12), "tok_embeddings.weight": (18, 12)})
    head = native.pop("output.weight")
    state = {f"model.{name}": one for name, one in transformers_names(native, 6).items()} | {"lm_head.weight": head}
    config = LlamaConfig(
        vocab_size=18,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=6,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


@pytest.fixture
def released(tmp_path):
    tensors = {f"embedder.{name}": one for name, one in embedder().items()}
    save_file(
        tensors | {f"bridge_module.{name}": one for name, one in bridge().items()}, tmp_path / "model.safetensors"
    )
    return arc_from_native(tmp_path, pooling_factor=4, head_dim=4)


def batch():
    ids = torch.tensor([TEXTS[0], TEXTS[1] + [0] * 4])
    return ids, torch.tensor([[1] * 9, [1] * 5 + [0] * 4])


def test_converted_weights_give_the_official_vectors(released):
    assert released.settings.out_dims == (12, 12)
    assert released.base_config.rope_parameters == {"rope_type": "default", "rope_theta": 500_000.0}
    vectors = released.encode(*batch())
    assert [len(one) for one in vectors] == [3, 2]
    for (text, vector), numbers in VECTORS.items():
        assert vectors[text][vector, :4].tolist() == pytest.approx(numbers, abs=2e-5)
    assert torch.cat(vectors).sum().item() == pytest.approx(2.552503, abs=2e-4)


@pytest.mark.parametrize(
    ("purpose", "number", "last"),
    [
        ("continuation", 0, [-0.196631, -0.077841, 0.272955]),
        ("reconstruction", 1, [-0.293618, 0.109, 0.186742]),
        ("continuation", 1, [0.229965, 0.090563, -0.318764]),
    ],
)
def test_the_learned_vector_is_that_of_decoder_and_purpose(released, purpose, number, last):
    projected = released(*batch(), decoder=number, purpose=purpose)
    assert projected[1][-1, :3].tolist() == pytest.approx(last, abs=2e-5)


@pytest.mark.parametrize(
    ("purpose", "number", "places", "loss"),
    [
        ("continuation", 0, (0, 0), 3.020771),
        ("reconstruction", 1, (0, 0), 3.012629),
        ("continuation", 1, (2, 3), 3.094599),
    ],
)
def test_the_loss_is_the_official_one_wherever_the_vectors_stand(released, purpose, number, places, loss):
    """Also behind some text: the token before the vectors predicts the one behind them."""
    texts = ([1, 5, 9, 2, 13, 8], [4, 4, 7, 16, 3])
    model, vectors = decoder(), released(*batch(), decoder=number, purpose=purpose)
    rows = [MixedRow(text, [one], [place]) for text, one, place in zip(texts, vectors, places, strict=True)]
    inputs = mixed_inputs(rows, model.get_input_embeddings())
    assert decoder_loss(model, inputs).item() == pytest.approx(loss, abs=2e-5)
    assert model(**inputs.model_inputs(), labels=inputs.labels).loss.item() == pytest.approx(loss, abs=2e-5)


def test_a_training_folder_is_read_too_and_so_are_older_names(tmp_path, released):
    for name, state in (("embedder", embedder()), ("bridge_module", bridge())):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "consolidated.safetensors")
    again = arc_from_native(tmp_path, pooling_factor=4, head_dim=4)
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in released.state_dict().items())
    (tmp_path / "model.safetensors").unlink()
    single = {name.replace("0.", "", 1): one for name, one in bridge().items() if name.startswith("0.")}
    save_file(single, tmp_path / "bridge_module" / "consolidated.safetensors")
    old = {name: one for name, one in embedder().items() if "_tok.1" not in name}
    old = {name.replace("tok.0.", "tok."): one for name, one in old.items()}
    save_file(old, tmp_path / "embedder" / "consolidated.safetensors")
    alone = arc_from_native(tmp_path, pooling_factor=4, head_dim=4)
    assert alone.settings.out_dims == (12,)
    assert torch.equal(alone(*batch())[0], released(*batch())[0])


def test_what_was_converted_is_saved_and_loaded_as_any_other(released, tmp_path):
    released.save_pretrained(tmp_path / "ours")
    again = ArcEncoder.from_pretrained(tmp_path / "ours")
    assert torch.equal(torch.cat(again(*batch())), torch.cat(released(*batch())))


def test_rows_go_from_pairs_to_halves():
    assert rotated_half(torch.arange(8.0)[:, None], 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_files_that_are_no_released_encoder_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"neither model.safetensors nor embedder/consolidated.safetensors"):
        arc_from_native(tmp_path)
    save_file({"embedder.tok_embeddings.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="holds no released ARC encoder"):
        arc_from_native(tmp_path)
