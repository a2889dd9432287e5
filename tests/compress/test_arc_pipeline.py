"""ARC-Encoder at work: what a decoder is given of text and vectors, and that it generates from it as from text."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import StaticCache
from transformers.cache_utils import DynamicCache

from helpers.architectures import tiny_model
from helpers.tiny import make_llama, make_tokenizer
from unwrite.compress import ArcEncoder, ArcPipeline, CompressedText, LearnedText, MixedRow, mixed_inputs
from unwrite.compress.contexts.inputs import IGNORED, decoder_loss
from unwrite.errors import DataError, MethodError, ModelError

CONTEXT = "ann wrote the old book near the green river in winter ."  # 12 tokens
OTHER = "where is the stone harbour of fay ?"  # 8 tokens


def with_bos():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture
def pipeline():
    torch.manual_seed(5)
    decoder = make_llama(seed=1)
    encoder = ArcEncoder.from_causal_lm(make_llama(seed=2), out_dims=[16, 32], pooling_factor=4)
    return ArcPipeline(encoder, decoder, make_tokenizer(), index=1)


def ids(text):
    return make_tokenizer()(text)["input_ids"]


def test_inputs_are_text_tokens_and_a_vector_more_than_the_groups_of_each_text(pipeline):
    first, second = pipeline.embed([CONTEXT, OTHER])
    assert (first.tokens, len(first.vectors), first.slots) == (12, 3, 4)
    assert (second.tokens, len(second.vectors), second.slots) == (8, 2, 3)
    row = ["what book", first, "was ann ?", second, second, "new"]
    inputs = pipeline.build_inputs([row])
    texts = [ids("what book"), ids("was ann ?"), ids("new")]
    assert inputs.inputs_embeds.shape == (1, sum(map(len, texts)) + 4 + 3 + 3, 32)
    assert inputs.position_ids.tolist() == [list(range(16))]
    embed = pipeline.decoder.get_input_embeddings()
    projected = pipeline.encoder.project([first.vectors, second.vectors], decoder=1)
    parts = [embed(torch.tensor(one)) for one in texts]
    whole = torch.cat([parts[0], projected[0], parts[1], projected[1], projected[1], parts[2]])
    assert torch.equal(inputs.inputs_embeds[0], whole)


def test_the_loss_is_of_tokens_whose_input_is_a_token(pipeline):
    (passage,) = pipeline.embed([CONTEXT])
    inputs = pipeline.build_inputs([[passage, "old green stone"], ["old", passage, "green stone"]])
    green, stone = ids("green stone")
    none = [IGNORED] * 4
    # The token before the vectors predicts the one behind them, so its label stands where the first vector does.
    assert inputs.labels.tolist() == [[*none, IGNORED, green, stone], [IGNORED, green, *none[1:], IGNORED, stone]]
    assert inputs.is_text.sum(1).tolist() == [3, 3]


def test_vectors_in_front_or_in_the_middle_leave_as_many_text_logits_as_tokens(pipeline):
    (passage,) = pipeline.embed([CONTEXT])
    rows = [[passage, "old green stone"], ["old", passage, "green stone"], ["old green stone"]]
    inputs = pipeline.build_inputs(rows)
    logits = pipeline.decoder(**inputs.model_inputs()).logits
    assert [len(one) for one in inputs.text_logits(logits)] == [3, 3, 3]
    own = [
        -logits[row, at - 1].log_softmax(-1)[inputs.labels[row, at]] for row, at in (inputs.labels != IGNORED).nonzero()
    ]
    assert len(own) == 6
    assert decoder_loss(pipeline.decoder, inputs).item() == pytest.approx(torch.stack(own).mean().item(), abs=1e-5)


def test_a_row_with_an_answer_learns_it_alone(pipeline):
    (passage,) = pipeline.embed([CONTEXT])
    inputs = pipeline.build_inputs([[passage, "who wrote ?", LearnedText("ann wrote")]])
    assert inputs.labels[0, -2:].tolist() == ids("ann wrote")
    assert (inputs.labels[0, :-2] == IGNORED).all()


def test_the_beginning_stands_once_and_first():
    tokenizer = with_bos()
    encoder = ArcEncoder.from_causal_lm(make_llama(), out_dims=[32], pooling_factor=4)
    pipeline = ArcPipeline(encoder, make_llama(), tokenizer)
    (passage,) = pipeline.embed([OTHER])
    assert passage.tokens == 8  # what is compressed has no beginning of its own
    embed = pipeline.decoder.get_input_embeddings()
    for row in (["old", passage, "green"], [passage, "old", "green"]):
        inputs = pipeline.build_inputs([row])
        assert torch.equal(inputs.inputs_embeds[0, 0], embed(torch.tensor(1)))
        assert inputs.inputs_embeds.shape[1] == 1 + 3 + 2
        assert pipeline.build_inputs([row], bos=False).inputs_embeds.shape[1] == 3 + 2


def test_without_projectors_output_the_decoder_sees_zeros(pipeline):
    """The vectors take their places and positions, whatever is in them."""
    for weight in pipeline.encoder.projectors[1].parameters():
        torch.nn.init.zeros_(weight)
    (passage,) = pipeline.embed([CONTEXT])
    text = torch.tensor(ids("who wrote the book ?"))
    embed = pipeline.decoder.get_input_embeddings()
    zeros = torch.cat([embed(text[:2]), torch.zeros(4, 32), embed(text[2:])])[None]
    expected = pipeline.decoder(inputs_embeds=zeros).logits
    inputs = pipeline.build_inputs([["who wrote", passage, "the book ?"]])
    assert torch.equal(pipeline.decoder(**inputs.model_inputs()).logits, expected)


def test_only_text_is_what_the_decoder_makes_of_ids(pipeline):
    inputs = pipeline.build_inputs([["who wrote", "the book ?"]])
    expected = pipeline.decoder(torch.tensor([ids("who wrote the book ?")])).logits
    assert torch.equal(pipeline.decoder(**inputs.model_inputs()).logits, expected)


def test_generating_equals_a_loop_by_hand_in_a_batch_with_padding(pipeline):
    first, second = pipeline.embed([CONTEXT, OTHER])
    rows = [["what book", first, "was ann ?", second], [second, "who"], ["who wrote the"]]
    embed = pipeline.decoder.get_input_embeddings()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    together = pipeline.generate_ids(rows, **options)
    for number, row in enumerate(rows):
        inputs = pipeline.build_inputs([row]).inputs_embeds
        tokens = []
        for _ in range(8):
            tokens.append(int(pipeline.decoder(inputs_embeds=inputs).logits[0, -1].argmax()))
            inputs = torch.cat([inputs, embed(torch.tensor([[tokens[-1]]]))], 1)
        assert together[number].tolist() == tokens
    texts = pipeline.generate(rows, **options)
    assert texts == pipeline.decoder_tokenizer.batch_decode(together, skip_special_tokens=True)


def test_generating_composes_with_caches_of_all_kinds(pipeline):
    first, second = pipeline.embed([CONTEXT, OTHER])
    rows = [["what book", first, "was ann ?"], [second, "who"]]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = pipeline.generate_ids(rows, **options)
    config = pipeline.decoder.config
    for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=40)):
        assert torch.equal(pipeline.generate_ids(rows, past_key_values=cache, **options), expected)
        assert cache.get_seq_length() > 9
    output = pipeline.generate_ids(rows, return_dict_in_generate=True, output_scores=True, **options)
    assert torch.equal(output, expected)


def test_texts_are_compressed_in_order_whatever_the_batches(pipeline):
    texts = [CONTEXT, OTHER, "old", f"{OTHER} {CONTEXT}", "green stone"]
    whole = pipeline.embed(texts)
    pipeline.batch_size = 2
    again = pipeline.embed(texts)
    assert [one.tokens for one in whole] == [12, 8, 1, 20, 2]
    for text, one, two in zip(texts, whole, again, strict=True):
        alone = pipeline.encoder.encode(torch.tensor([ids(text)]))[0]
        assert torch.allclose(one.vectors, alone, atol=1e-5)
        assert torch.allclose(two.vectors, alone, atol=1e-5)
        assert not one.vectors.requires_grad


def test_compressing_leaves_the_encoders_mode_as_it_was(pipeline):
    for mode in (True, False):
        pipeline.encoder.train(mode)
        pipeline.embed([OTHER])
        assert pipeline.encoder.training is mode


def test_what_is_compressed_once_serves_every_decoder(pipeline):
    other = ArcPipeline(pipeline.encoder, make_llama(seed=4, hidden=16), make_tokenizer(), index=0)
    (passage,) = pipeline.embed([CONTEXT])
    assert pipeline.build_inputs([[passage]]).inputs_embeds.shape == (1, 4, 32)
    assert other.build_inputs([[passage]]).inputs_embeds.shape == (1, 4, 16)


def test_padding_stands_where_it_is_asked_for_and_is_hidden(pipeline):
    (passage,) = pipeline.embed([OTHER])
    rows = [[passage, "old green"], ["old"]]
    for side, mask, positions in (
        ("right", [[1] * 5, [1, 0, 0, 0, 0]], [[0, 1, 2, 3, 4], [0] * 5]),
        ("left", [[1] * 5, [0, 0, 0, 0, 1]], [[0, 1, 2, 3, 4], [0] * 5]),
    ):
        inputs = pipeline.build_inputs(rows, side=side)
        assert inputs.attention_mask.tolist() == mask
        assert inputs.position_ids.tolist() == positions


def test_pairs_that_dont_fit_are_refused(pipeline):
    with pytest.raises(MethodError, match=r"gives vectors of 16 numbers, and LlamaForCausalLM embeds tokens in 32"):
        ArcPipeline(pipeline.encoder, pipeline.decoder, make_tokenizer(), index=0)
    with pytest.raises(MethodError, match="no projector for decoder 2"):
        ArcPipeline(pipeline.encoder, pipeline.decoder, make_tokenizer(), index=2)
    headless = tiny_model("llama")
    headless.get_input_embeddings = lambda: None
    with pytest.raises(ModelError, match="has no token embeddings"):
        ArcPipeline(pipeline.encoder, headless, make_tokenizer(), index=1)


def test_texts_and_rows_without_anything_are_refused(pipeline):
    with pytest.raises(DataError, match=r"text 2 of 2 is empty: ''. Leave it out"):
        pipeline.embed([OTHER, ""])
    for rows in ([], [["old"], []]):
        with pytest.raises(DataError, match="a row has no segment"):
            pipeline.build_inputs(rows)
    with pytest.raises(MethodError, match="vectors of 5 numbers, the encoder 32"):
        pipeline.build_inputs([[CompressedText(torch.ones(2, 5), 8)]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": [1], "vectors": [torch.ones(1, 4)], "places": []}, "1 compressed texts stand before tokens"),
        ({"tokens": [1, 2], "vectors": [torch.ones(1, 4)] * 2, "places": [1, 0]}, "in ascending order"),
        ({"tokens": [1], "vectors": [torch.ones(1, 4)], "places": [2]}, "stands before token 2 of 1"),
        ({"tokens": [1], "learned": [True, False]}, "1 tokens and 2 marks"),
        ({"tokens": []}, "neither text nor vectors"),
    ],
)
def test_rows_that_make_no_sense_are_refused(row, message):
    with pytest.raises(MethodError, match=message):
        MixedRow(**row)


def test_a_batch_without_rows_is_refused():
    with pytest.raises(MethodError, match="there is no row"):
        mixed_inputs([], make_llama().get_input_embeddings())
