"""The negated task vector (arXiv 2212.04089): it goes against fine-tuning on the forget rows, and at 0 nowhere."""

import warnings

import pytest
from forgetting import SGD
from peft import LoraConfig

from conftest import make_llama
from unwrite.data.text.encoding import encode_all
from unwrite.errors import MethodError
from unwrite.forget import TaskVector
from unwrite.runs import hash_model
from unwrite.scoring import score_answers


def test_alpha_zero_of_the_task_vector_changes_nothing(forget, tokenizer, tiny_llama):
    before = hash_model(tiny_llama)
    args = {**SGD, "max_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TaskVector(alpha=0.0).apply(tiny_llama, forget, processing_class=tokenizer, args=args)
    assert hash_model(tiny_llama) == before


def test_task_vector_goes_against_the_fine_tuning_direction(forget, tokenizer):
    model, rows = make_llama(), encode_all(forget, tokenizer)
    before = sum(score.nll for score in score_answers(model, rows, pad_id=0))
    args = {**SGD, "max_steps": 5, "learning_rate": 0.1}
    TaskVector(alpha=1.0).apply(model, forget, processing_class=tokenizer, args=args)
    assert sum(score.nll for score in score_answers(model, rows, pad_id=0)) > before


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_refuses_a_task_vector_of_a_tied_head_alone(forget, tokenizer, tiny_llama):
    """A shared weight has two changes then, and no single direction to go against."""
    tiny_llama.config.tie_word_embeddings = True
    tiny_llama.tie_weights()
    before = hash_model(tiny_llama)
    config = LoraConfig(r=2, target_modules=["lm_head"])
    with pytest.raises(MethodError, match=r"share one weight.*out of its target_modules"):
        TaskVector().apply(
            tiny_llama, forget, processing_class=tokenizer, args={**SGD, "max_steps": 1}, peft_config=config
        )
    assert hash_model(tiny_llama) == before
