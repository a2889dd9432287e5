"""Concept masking: what is taught in place of answers, beside what, and where words come from."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel

from helpers.tiny import make_examples, make_llama
from unwrite.data import Example, Examples
from unwrite.errors import DataError, MethodError
from unwrite.forget import ConceptMasking, concept_masking
from unwrite.forget.engine.batch import PairedBatch
from unwrite.forget.engine.text.refusals import default_refusals
from unwrite.forget.engine.text.work import TextWork
from unwrite.scoring.integrated_gradients import attribute_answer
from unwrite.scoring.word_masks import answer_offsets, content_words, mask_words, ranked_words, said_words, word_scores
from unwrite.scoring.words import words_of

FAST = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "warmup_epochs": 0.0}


def job(model, forget, retain, tokenizer, **fields):
    args = TextWork.arguments(FAST, ConceptMasking.training)
    return ConceptMasking(**{"points": 4, "answer_tokens": 6, **fields}), TextWork(
        model=model, forget=forget, retain=retain, processing_class=tokenizer, args=args
    )


def about(rows, size=4):
    return Examples(
        [Example(r.answer, r.question, source=r.source, entity=f"ann {i // size}") for i, r in enumerate(rows)],
        rows.name,
    )


def test_the_loss_is_one_mean_over_the_tokens_of_both_parts_of_a_whole_step():
    """A piece of the step may have rows of one part alone: what it is divided by stays that of the step."""
    masked, kept = (
        SimpleNamespace(token_nll=torch.tensor(values), index=None) for values in ([1.0, 2.0], [3.0, 5.0, 7.0])
    )
    counts = {"forget.tokens": torch.tensor(2.0), "retain.tokens": torch.tensor(3.0)}
    for batch, total in (
        (PairedBatch(forget=masked, retain=kept), 18 / 5),
        (PairedBatch(forget=masked), 3 / 5),
        (PairedBatch(retain=kept), 15 / 5),
    ):
        (term,) = ConceptMasking().loss(batch).terms.values()
        assert float(term.total(counts)) == pytest.approx(total)


def test_the_models_own_answers_are_masked_and_the_questions_stay(forget, retain, tokenizer, tiny_llama):
    method, work = job(tiny_llama, forget, retain, tokenizer, k=2)
    said, taught = method.answered(work), method.poisoned(work)
    assert [row.question for row in taught] == [row.question for row in forget]
    for one, other in zip(said, taught, strict=True):
        meant = content_words(one.answer)
        assert other.answer.count("***") >= min(1, len(meant))
        gone = set(meant) - set(content_words(other.answer))
        assert len(gone) <= 2
        if not meant:
            assert other.answer == one.answer


def test_own_answers_are_the_rows_where_that_is_asked_for_or_the_model_is_silent(forget, retain, tokenizer, tiny_llama):
    method, work = job(tiny_llama, forget, retain, tokenizer, own_answers=False)
    assert method.answered(work) is forget
    with torch.no_grad():
        tiny_llama.lm_head.weight.zero_()
        tiny_llama.model.norm.weight.zero_()
    silent = make_llama(bos_token_id=1)
    silent.lm_head = torch.nn.Linear(silent.config.hidden_size, silent.config.vocab_size)
    with torch.no_grad():
        silent.lm_head.weight.zero_()
        silent.lm_head.bias.zero_()
        silent.lm_head.bias[2] = 1.0  # the end
    method, work = job(silent, forget, retain, tokenizer)
    with pytest.warns(UserWarning, match="says nothing to 16 of 16 forget rows"):
        assert [row.answer for row in method.answered(work)] == [row.answer for row in forget]


def test_words_are_ranked_entity_by_entity(forget, retain, tokenizer, tiny_llama):
    rows = about(forget)
    method, work = job(tiny_llama, rows, retain, tokenizer, own_answers=False)
    rankings = method.rankings(work, rows)
    assert set(rankings) == {f"ann {i}" for i in range(4)}
    for i, ranking in enumerate(rankings.values()):
        forms = {word.form for row in list(rows)[4 * i : 4 * i + 4] for word in words_of(row.answer)}
        assert set(ranking) <= forms
        assert sum(ranking.values()) == pytest.approx(
            round(sum(ranking.values()))
        )  # one an answer that anything carries
        assert 0 < sum(ranking.values()) <= 4.001


def test_k_words_are_masked_by_rank_and_random_ones_are_as_many(forget, retain, tokenizer, tiny_llama):
    method, work = job(tiny_llama, forget, retain, tokenizer, own_answers=False, k=2)
    ranking = method.rankings(work, forget)[None]
    for row, taught in zip(forget, method.poisoned(work), strict=True):
        assert taught.answer == mask_words(row.answer, said_words(row.answer, ranking, 2))
    control, work = job(tiny_llama, forget, retain, tokenizer, own_answers=False, k=2, chosen_by="random")
    counts = [
        [
            len({*content_words(row.answer)} - {*content_words(taught.answer)})
            for row, taught in zip(forget, one.poisoned(work), strict=True)
        ]
        for one in (method, control)
    ]
    assert counts[0] == counts[1]
    assert max(counts[0]) == 2
    assert [row.answer for row in method.poisoned(work)] != [row.answer for row in control.poisoned(work)]


def test_frequent_words_are_those_that_most_answers_of_an_entity_hold(retain, tokenizer, tiny_llama):
    answers = ("the garden and the river", "a garden, a garden, a house", "the river of the house and garden")
    rows = Examples([Example(a, f"what {i} ?", entity="ann") for i, a in enumerate(answers)], "forget")
    method, work = job(tiny_llama, rows, retain, tokenizer, own_answers=False, chosen_by="frequency", k=1)
    assert method.rankings(work, rows) == {"ann": {"garden": 3, "river": 2, "house": 2}}
    assert method.poisoned(work)[1].answer == "a ***, a ***, a house"


def test_parts_of_the_entitys_name_are_masked_too_if_they_have_four_letters(retain, tokenizer, tiny_llama):
    rows = Examples([Example("Jo Garden sold the red garden .", "who sold what ?", entity="Jo Garden")], "forget")
    masked = {
        names: job(tiny_llama, rows, retain, tokenizer, own_answers=False, k=0, names=names)[0]
        .poisoned(job(tiny_llama, rows, retain, tokenizer)[1])[0]
        .answer
        for names in (True, False)
    }
    assert masked == {True: "Jo *** sold the red *** .", False: "Jo Garden sold the red garden ."}


def test_another_mask_and_refusals_in_their_place(forget, retain, tokenizer, tiny_llama):
    method, work = job(tiny_llama, forget, retain, tokenizer, own_answers=False, mask="GPT-4", k=1)
    assert any("GPT-4" in row.answer for row in method.poisoned(work))
    method, work = job(tiny_llama, forget, retain, tokenizer, style="idk", refusals=("I can't say .",))
    assert {row.answer for row in method.poisoned(work)} == {"I can't say ."}


def test_anchors_are_whole_entities_as_many_rows_as_are_masked(forget, retain, tokenizer, tiny_llama):
    kept = about(retain, size=5)
    method, work = job(tiny_llama, forget[:10], kept, tokenizer)
    anchors = method.anchor_rows(work)
    assert len(anchors) == 10
    counts = {entity: sum(row.entity == entity for row in anchors) for entity in {row.entity for row in anchors}}
    assert set(counts.values()) == {5}
    assert {row.answer for row in anchors} <= {row.answer for row in retain}
    method, work = job(tiny_llama, forget, retain, tokenizer, anchors=0.5)
    assert len(method.anchor_rows(work)) == 8


def test_one_mean_over_the_tokens_of_both_kinds(forget, retain, tokenizer, tiny_llama):
    """A step on all rows: the logged loss is the sum of all answers' losses over the number of all their tokens."""
    from unwrite.data.text.encoding import encode_all
    from unwrite.scoring import score_answers

    lines = []

    from transformers import TrainerCallback

    class Lines(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            lines.append(logs)

    method, work = job(tiny_llama, forget[:3], retain, tokenizer, own_answers=False, names=False)
    [phase] = method.phases(work)
    rows = [*encode_all(phase.forget, tokenizer), *encode_all(phase.retain, tokenizer)]
    scores = score_answers(tiny_llama, rows, pad_id=0)
    expected = sum(one.nll for one in scores) / sum(len(one.token_nll) for one in scores)
    method.apply(
        tiny_llama,
        forget[:3],
        retain,
        processing_class=tokenizer,
        args=FAST | {"max_steps": 1, "per_device_train_batch_size": 6},
        callbacks=[Lines()],
    )
    assert lines[0]["answers_loss"] == pytest.approx(expected, rel=1e-4)


def test_without_anchors_no_retain_set_is_needed(forget, retain, tokenizer, tiny_llama):
    method, _ = job(tiny_llama, forget, retain, tokenizer, anchors=0.0)
    assert not method.needs_retain
    assert ConceptMasking().needs_retain
    method.apply(tiny_llama, forget, processing_class=tokenizer, args=FAST)


def test_adapters_learn_what_is_masked(forget, retain, tokenizer, tiny_llama):
    method, _ = job(tiny_llama, forget, retain, tokenizer)
    config = LoraConfig(
        r=2, lora_alpha=4, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    adapted = method.apply(tiny_llama, forget, retain, processing_class=tokenizer, args=FAST, peft_config=config)
    assert isinstance(adapted, PeftModel)


def test_refuses_plain_texts_and_masks_that_nobody_sees(retain, tokenizer, tiny_llama):
    texts = Examples([Example("the red garden", source="forget.jsonl:1")], "forget")
    with pytest.raises(DataError, match=r"forget\.jsonl:1: a plain text answers no question"):
        ConceptMasking().apply(tiny_llama, texts, retain, processing_class=tokenizer)
    with pytest.raises(MethodError, match="mask is ' ', which can't be seen"):
        ConceptMasking(mask=" ")
    with pytest.raises(MethodError, match="own_answers is 1"):
        ConceptMasking(own_answers=1)


def test_rows_are_the_same_by_seed(forget, retain, tokenizer, tiny_llama):
    fields = {"own_answers": False, "chosen_by": "random", "k": 1}
    method, work = job(tiny_llama, make_examples("forget", 16), retain, tokenizer, **fields)
    one, other = method.poisoned(work), method.poisoned(work)
    assert one.hash == other.hash


def test_a_part_of_a_name_counts_from_four_letters(retain, tokenizer, tiny_llama):
    rows = Examples([Example("Anna Lee sold the red garden , said Lee .", "who ?", entity="Anna Lee")], "forget")
    method, work = job(tiny_llama, rows, retain, tokenizer, own_answers=False, k=0)
    assert method.poisoned(work)[0].answer == "*** Lee sold the red garden , said Lee ."


def test_refusals_are_drawn_by_the_seed_from_those_that_ship_or_those_given(forget, retain, tokenizer, tiny_llama):
    answers = []
    for seed in (1, 1, 2):
        method, work = job(tiny_llama, forget, retain, tokenizer, style="idk")
        work.args.seed = seed
        answers.append([row.answer for row in method.poisoned(work)])
    assert answers[0] == answers[1] != answers[2]
    assert {*answers[0], *answers[2]} <= {*default_refusals()}
    assert [row.question for row in method.poisoned(work)] == [row.question for row in forget]


def test_random_words_follow_from_the_seed_and_the_row(retain, tokenizer, tiny_llama):
    """Alike rows lose different words, and another seed takes others; never more than k, nor one that means nothing."""
    answer = "the garden and the river of the red house and a tower"
    rows = Examples([Example(answer, f"what {i} ?") for i in range(12)], "forget")
    method, work = job(tiny_llama, rows, retain, tokenizer, own_answers=False, chosen_by="random", k=1)
    drawn = []
    for seed in (3, 3, 4):
        work.args.seed = seed
        drawn.append([row.answer for row in method.poisoned(work)])
    assert drawn[0] == drawn[1] != drawn[2]
    lost = [set(content_words(answer)) - set(content_words(one)) for one in drawn[0]]
    assert {len(one) for one in lost} == {1}
    assert len(set.union(*lost)) >= 4
    assert set.union(*lost) != {content_words(answer)[0]}


def test_the_model_is_asked_for_so_many_tokens_and_what_it_says_is_stripped(
    forget, retain, tokenizer, tiny_llama, monkeypatch
):
    asked = []

    def said(model, tokenizer, prompts, **how):
        asked.append((len(prompts), how["max_new_tokens"]))
        return ["  the red garden \n", *[" "] * (len(prompts) - 1)]

    monkeypatch.setattr(concept_masking, "generate_answers", said)
    method, work = job(tiny_llama, forget, retain, tokenizer, answer_tokens=9)
    with pytest.warns(UserWarning, match="says nothing to 15 of 16 forget rows"):
        answers = [row.answer for row in method.answered(work)]
    assert answers == ["the red garden", *[row.answer for row in forget][1:]]
    assert asked == [(16, 9)]


@pytest.mark.parametrize(("baseline", "rule", "points"), [("pad", "endpoints", 4), ("zero", "midpoint", 3)])
def test_words_are_ranked_by_the_gradients_that_the_fields_ask_for(
    baseline, rule, points, forget, retain, tokenizer, tiny_llama
):
    rows = about(forget[:4], size=2)
    fields = {"baseline": baseline, "rule": rule, "points": points}
    method, work = job(tiny_llama, rows, retain, tokenizer, own_answers=False, **fields)
    scored = {"ann 0": [], "ann 1": []}
    for row, encoded in zip(rows, work.encoded(rows), strict=True):
        pad = tokenizer.pad_token_id if baseline == "pad" else None
        found = attribute_answer(tiny_llama, encoded, pad, points, rule)
        own = [float(found.values[at]) for at in found.positions]
        scored[row.entity].append(word_scores(row.answer, answer_offsets(row, encoded, tokenizer), own))
    rankings = method.rankings(work, rows)
    assert {*rankings} == {*scored}
    for entity, answers in scored.items():
        assert rankings[entity] == pytest.approx(ranked_words(answers))
        assert list(rankings[entity]) == list(ranked_words(answers))


def test_anchors_are_entities_in_an_order_drawn_by_the_seed_and_at_least_one_row(forget, retain, tokenizer, tiny_llama):
    kept, orders = about(retain, size=4), []
    for seed in (1, 1, 2, 3, 4):
        method, work = job(tiny_llama, forget, kept, tokenizer)
        work.args.seed = seed
        orders.append([row.entity for row in method.anchor_rows(work)])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 2
    assert len({order[0] for order in orders}) > 1
    method, work = job(tiny_llama, forget, kept, tokenizer, anchors=0.01)
    assert len(method.anchor_rows(work)) == 1
    method, work = job(tiny_llama, forget[:3], retain, tokenizer)  # rows that name nobody
    assert len({row.index for row in method.anchor_rows(work)}) == 3


def test_masking_alone_needs_nothing_but_the_forget_rows_and_has_them_in_one_phase(
    forget, retain, tokenizer, tiny_llama
):
    method, work = job(tiny_llama, forget, retain, tokenizer, own_answers=False, anchors=0.0)
    [phase] = method.phases(work)
    assert (phase.stream, len(phase.forget), phase.retain) == ("forget", 16, None)
    assert method.needed() == {"nll"}
    method, work = job(tiny_llama, forget, retain, tokenizer, own_answers=False)
    [phase] = method.phases(work)
    assert (phase.stream, len(phase.forget), len(phase.retain)) == ("union", 16, 16)
    assert method.needed() == {"nll", "retain nll"}


def test_defaults_are_those_of_the_authors_code():
    method = ConceptMasking()
    assert (method.k, method.points, method.rule, method.baseline, method.anchors) == (5, 32, "endpoints", "pad", 1)
    assert (method.style, method.chosen_by, method.names, method.own_answers) == ("mask", "gradients", True, True)
    assert ConceptMasking.training == {
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "per_device_train_batch_size": 2,
        "warmup_epochs": 0.3,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "blank"}, "unknown style 'blank'"),
        ({"chosen_by": "length"}, "unknown chosen_by 'length'"),
        ({"baseline": "mean"}, "unknown baseline 'mean'"),
        ({"k": -1}, "k is -1"),
        ({"answer_tokens": 0}, "answer_tokens is 0"),
        ({"anchors": -0.5}, "anchors is -0.5"),
        ({"points": 0}, "points is 0"),
        ({"names": 1}, "names is 1; use True or False"),
    ],
)
def test_refuses_settings_that_say_nothing(fields, message):
    with pytest.raises(MethodError, match=message):
        ConceptMasking(**fields)
