"""What a sampler takes and refuses, alone and through `generate`."""

import math
from dataclasses import replace

import pytest
import torch
from masks import END, MASK, lively, prompts_of

from conftest import make_tokenizer
from unwrite.diffusion import Fading, FixedBlocks, MaskPredictor, NegativeEntropy, Sampler, Threshold, TopK
from unwrite.errors import MethodError

SAMPLER = Sampler(gen_length=8, blocks=FixedBlocks(4), commit=Threshold(0.5))


def options(**more):
    return {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": END, **more}


def left_padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return ids, mask


def test_generate_writes_the_same_with_padding_on_the_left():
    predictor, prompts = lively(), prompts_of(3, 6)
    predictor.model.config.mask_token_id = MASK
    ids, mask = left_padded(prompts)
    found = predictor.model.generate(ids, attention_mask=mask, custom_generate=SAMPLER, **options())
    own = SAMPLER(predictor, None, prompts)
    assert found[:, :6].tolist() == ids.tolist()
    for row, prompt in enumerate(prompts):
        assert found[row, 6:].tolist() == own.sequences[row, len(prompt) : len(prompt) + 8].tolist()


def test_generate_returns_everything_when_asked_for_a_dict():
    predictor = lively()
    predictor.model.config.mask_token_id = MASK
    ids, mask = left_padded(prompts_of(4))
    out = predictor.model.generate(
        ids, attention_mask=mask, custom_generate=SAMPLER, **options(return_dict_in_generate=True)
    )
    assert out.sequences.shape == (1, 12)
    assert out.nfe.tolist() == out.trace.nfe.tolist()


def test_generates_length_counts():
    predictor = lively()
    predictor.model.config.mask_token_id = MASK
    ids, mask = left_padded(prompts_of(4))
    found = predictor.model.generate(ids, attention_mask=mask, custom_generate=SAMPLER, **options(max_new_tokens=12))
    assert found.shape == (1, 16)


@pytest.mark.parametrize(
    ("more", "what"),
    [({"num_return_sequences": 2}, "num_return_sequences"), ({"repetition_penalty": 1.5}, "RepetitionPenalty")],
)
def test_generate_refuses_what_has_no_meaning_without_an_order(more, what):
    predictor = lively()
    predictor.model.config.mask_token_id = MASK
    ids, mask = left_padded(prompts_of(4))
    with pytest.raises(MethodError, match=what):
        predictor.model.generate(
            ids,
            attention_mask=mask,
            custom_generate=SAMPLER,
            **options(do_sample="num_return_sequences" in more, **more)
            if "num_return_sequences" not in more
            else {**options(), "do_sample": True, "top_k": 0, **more},
        )


def test_text_prompts_need_a_tokenizer_and_answers_become_text():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    from conftest import make_llama

    model = make_llama(vocab=len(tokenizer))
    model.config.is_causal = False
    out = SAMPLER(model, tokenizer, ["who wrote the book", "where is ann ?"])
    assert len(out.texts(tokenizer)) == 2
    with pytest.raises(MethodError, match="no tokenizer"):
        SAMPLER(MaskPredictor.of(model, tokenizer), None, ["who"])


@pytest.mark.parametrize(
    ("prompts", "what"),
    [
        ([], "no prompt"),
        ([[5, MASK, 6]], "prompt 0 holds the mask token"),
        ([[5] * 121], "128 positions"),
    ],
)
def test_prompts_that_cannot_be_written_after_are_refused(prompts, what):
    with pytest.raises(MethodError, match=what):
        SAMPLER(lively(), None, prompts)


def test_generate_refuses_the_mask_token_in_a_prompt():
    predictor = lively()
    predictor.model.config.mask_token_id = MASK
    ids, mask = left_padded([[5, 6, 7], [5, MASK]])
    with pytest.raises(MethodError, match="prompt 1 holds the mask token"):
        predictor.model.generate(ids, attention_mask=mask, custom_generate=SAMPLER, **options())


def test_an_empty_prompt_is_fine_unless_the_model_shifts():
    assert SAMPLER(lively(), None, [[]]).sequences.shape == (1, 8)
    with pytest.raises(MethodError, match="prompt 0 is empty"):
        SAMPLER(lively(shift=True), None, [[]])


@pytest.mark.parametrize(
    ("fixed", "what"),
    [({8: 5}, "outside 0 to 7"), ({0: MASK}, "mask token"), ([{0: 5}, {}], "2 entries for 1")],
)
def test_given_tokens_outside_the_answer_are_refused(fixed, what):
    with pytest.raises(MethodError, match=what):
        SAMPLER(lively(), None, prompts_of(3), fixed=fixed)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"gen_length": 0}, "gen_length is 0"),
        ({"gen_length": 8, "steps": 9}, "steps is 9"),
        ({"gen_length": 8, "steps": 0}, "steps is 0"),
        ({"cache": "both"}, "cache is 'both'"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": math.inf}, "guidance is inf"),
    ],
)
def test_settings_without_meaning_are_refused(settings, what):
    with pytest.raises(MethodError, match=what):
        Sampler(**settings)


def test_unknown_arguments_of_the_call_are_named():
    with pytest.raises(MethodError, match="temperature is not known"):
        SAMPLER(lively(), None, prompts_of(3), temperature=0.5)


def test_the_presets_are_the_papers():
    llada, dream = Sampler.llada(), Sampler.dream()
    assert (llada.gen_length, llada.steps, llada.blocks.size, llada.commit) == (128, 128, 32, TopK())
    assert (dream.blocks.size, dream.propose.temperature, dream.propose.top_p) == (None, 0.2, 0.95)
    assert (dream.score, dream.quota, dream.commit) == (NegativeEntropy(), Fading(1e-3), TopK())


def test_a_sampler_is_a_value():
    assert replace(SAMPLER, seed=0) == SAMPLER
    assert eval(repr(SAMPLER), vars(__import__("unwrite.diffusion", fromlist=["*"])) | _names()) == SAMPLER


def _names():
    import unwrite.diffusion as package

    return {name: getattr(package, name) for name in package.__all__}
