"""CodeEraser: its loss in closed form, its steps, when it stops, and what it refuses (arXiv 2509.13755)."""

import copy
import math

import pytest
import torch
from forgetting import SGD, StepCounter, forward, references, train, value, weights

from conftest import make_llama
from unwrite.beds.language import small_config, small_tokenizer
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import encode_all
from unwrite.errors import DataError, MethodError, Notice
from unwrite.forget import CodeEraser, GradientAscent, Smooth, StopWhenUnsaid
from unwrite.forget.engine.loss import kl_divergence
from unwrite.forget.engine.phase import Phase
from unwrite.scoring import Passage, Thresholds

BARE = {"gamma": 0.0, "constraint": 0.0, "retain_loss": "none", "stop": "never"}
AWS = "AKIA" + "QYTZ4PXW7KLM2VND"


def text(words, *marked, source=""):
    """A row of words, some marked by number."""
    tokens, at, spans = words.split(), 0, []
    for number, word in enumerate(tokens):
        if number in marked:
            spans.append((at, at + len(word)))
        at += len(word) + 1
    return Example(words, marked=tuple(spans), source=source)


FORGET = Examples([text("who wrote the old book in winter ?", 3, 4), text("ann lives near the river", 4)], "forget")
RETAIN = Examples([text("the garden of cora is green ."), text("one two three four five")], "retain")


@pytest.fixture
def rows(tokenizer):
    return {"forget": encode_all(FORGET, tokenizer), "retain": encode_all(RETAIN, tokenizer)}


def moved(model, by=0.05):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


def gradient_at_logits(objective, batch):
    return torch.autograd.grad(value(objective, batch), batch.forget.logits, retain_graph=True)[0]


# Must hold 1


def test_with_all_tokens_marked_and_nothing_else_it_is_gradient_ascent_on_the_file(tokenizer, tiny_llama):
    whole = Examples([Example(row.answer, marked=((0, len(row.answer)),)) for row in FORGET])
    other = copy.deepcopy(tiny_llama)
    train(CodeEraser(**BARE), tiny_llama, whole, None, tokenizer, max_steps=2)
    train(GradientAscent(), other, FORGET, None, tokenizer, max_steps=2)
    ours, theirs = weights(tiny_llama), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], one) for name, one in weights(make_llama()).items())


def test_the_setting_for_whole_files_is_gradient_ascent_too(rows, tiny_llama):
    objective = CodeEraser(on="all", **BARE)
    batch = forward(objective, tiny_llama, {"forget": rows["forget"]})
    assert value(objective, batch).item() == pytest.approx(value(GradientAscent(), batch).item())


def test_without_gamma_and_constraint_no_gradient_reaches_other_tokens(rows, tiny_llama):
    objective = CodeEraser(**BARE)
    batch = forward(objective, tiny_llama, {"forget": rows["forget"]})
    gradient, marked = gradient_at_logits(objective, batch), batch.forget.marked
    assert marked.tolist() == [*(i in (2, 3) for i in range(7)), False, False, False, True]
    assert not gradient[~marked].any()
    assert gradient[marked].any(-1).all()


# Must hold 2


def test_at_the_first_step_divergences_are_0_and_have_no_gradient(rows, tiny_llama):
    objective = CodeEraser(gamma=0)
    batch = forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows))
    terms = objective.total_loss(batch).terms
    for name, part in (("constraint", batch.forget), ("retain", batch.retain)):
        assert terms[name].values.abs().max().item() < 1e-6
        gradient = torch.autograd.grad(terms[name].values.sum(), part.logits, retain_graph=True)[0]
        assert gradient.abs().max().item() < 1e-6


def test_the_loss_has_the_papers_closed_form(rows, tiny_llama):
    """The divergence is raised on secrets and lowered on retained files; each mean is over its own tokens."""
    objective = CodeEraser(gamma=0.3, constraint=0.2, retain_weight=0.5)
    reference = references(objective, tiny_llama, rows)
    batch = forward(objective, moved(tiny_llama), rows, reference)
    part, kept = batch.forget, batch.retain
    secret = part.marked
    expected = (
        -part.token_nll[secret].mean()
        + 0.3 * part.token_nll[~secret].mean()
        - 0.2 * kl_divergence(part.reference_logits, part.logits)[secret].mean()
        + 0.5 * kl_divergence(kept.reference_logits, kept.logits).mean()
    )
    assert kl_divergence(part.reference_logits, part.logits)[secret].mean() > 1e-3
    torch.testing.assert_close(value(objective, batch), expected)


# Must hold 6


def test_twice_the_padding_changes_nothing(rows, tiny_llama):
    objective = CodeEraser()
    reference = references(objective, tiny_llama, rows)
    moved(tiny_llama)
    plain = value(objective, forward(objective, tiny_llama, rows, reference)).item()
    padded = value(objective, forward(objective, tiny_llama, rows, reference, extra=8)).item()
    assert padded == pytest.approx(plain, abs=1e-5)


# The schedule


def test_a_step_updates_on_forget_rows_and_then_on_retain_rows_from_there(rows, tokenizer, tiny_llama):
    objective = CodeEraser(stop="never")
    reference = references(objective, tiny_llama, rows)
    by_hand = copy.deepcopy(tiny_llama)
    for part in ("forget", "retain"):
        batch = forward(objective, by_hand, {part: rows[part]}, reference)
        by_hand.zero_grad()
        value(objective, batch).backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= SGD["learning_rate"] * parameter.grad
    options = {"max_steps": 1, "gradient_accumulation_steps": 1, "max_grad_norm": 0.0}
    train(objective, tiny_llama, FORGET, RETAIN, tokenizer, **options)
    theirs = weights(by_hand)
    for name, ours in weights(tiny_llama).items():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-5, atol=1e-7)


def test_two_accumulated_batches_are_one_batch_of_both(tokenizer):
    one, two = make_llama(), make_llama()
    objective = CodeEraser(stop="never")
    train(objective, one, FORGET, RETAIN, tokenizer, max_steps=2, gradient_accumulation_steps=1)
    train(
        objective, two, FORGET, RETAIN, tokenizer,
        max_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=2,
    )  # fmt: skip
    theirs = weights(two)
    for name, ours in weights(one).items():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-4, atol=1e-6)


def test_callbacks_see_both_updates_of_a_step(tokenizer, tiny_llama):
    class Updates(StepCounter):
        before = after = 0

        def on_pre_optimizer_step(self, *_, **__):
            self.before += 1

        def on_optimizer_step(self, *_, **__):
            self.after += 1

    seen = Updates()
    train(CodeEraser(stop="never"), tiny_llama, FORGET, RETAIN, tokenizer, max_steps=3, callbacks=[seen])
    assert (seen.taken, seen.before, seen.after) == (3, 6, 6)


def test_updates_apart_are_refused_where_they_have_no_meaning():
    with pytest.raises(MethodError, match="takes paired rows and the gradient; this one has the stream 'forget'"):
        Phase("forget", loss=None, apart=True)
    with pytest.raises(MethodError, match="a descent of its own"):
        Phase("paired", loss=None, apart=True, descent=lambda landscape: None)


def test_smoothing_it_is_refused_in_a_line(tokenizer, tiny_llama):
    with pytest.raises(MethodError, match="a descent of its own"):
        train(Smooth(CodeEraser(stop="never")), tiny_llama, FORGET, RETAIN, tokenizer, max_steps=1)


# Must hold 7


class Figures(StopWhenUnsaid):
    """Epochs with given figures in place of measured ones."""

    def __init__(self, figures, **options):
        super().__init__([Passage((1,), (2,))], Thresholds(0.5, 0.1), 0, **options)
        self.figures = iter(figures)

    def _measure(self, model):
        return next(self.figures)


def epochs(figures, **options):
    """How many epochs are trained until it stops, and the callback."""
    from transformers import TrainerControl, TrainerState

    stop, control, model = Figures(figures, **options), TrainerControl(), torch.nn.Linear(1, 1, bias=False)
    for epoch in range(1, len(figures) + 1):
        with torch.no_grad():
            model.weight.fill_(epoch)
        stop.on_epoch_end(None, TrainerState(epoch=epoch), control, model)
        if control.should_training_stop:
            return epoch, stop, model
    return None, stop, model


def test_stops_at_the_first_epoch_below_both_thresholds():
    assert epochs([(0.9, math.nan), (0.4, 0.2), (0.6, 0.05), (0.4, 0.05), (0.1, 0.0)])[0] == 4


def test_never_stops_on_what_is_no_number():
    assert epochs([(math.nan, 0.0), (0.0, math.nan), (math.nan, math.nan)])[0] is None


def test_stops_when_the_likelihood_gets_no_better():
    epoch, stop, _ = epochs([(0.6, 0.5)] * 9, patience=5)
    assert epoch == 6
    assert "no better extraction likelihood for 5 epochs" in stop.reason
    assert epochs([(0.6, 0.5 - 0.01 * i) for i in range(9)], patience=5)[0] is None


def test_keeps_the_weights_of_the_best_epoch():
    _, stop, model = epochs([(0.8, 0.5), (0.6, 0.4), (0.6, 0.3), (0.6, 0.35), (0.7, 0.1)])
    with pytest.warns(Notice, match=r"memorisation accuracy 0.60, not below that of unseen texts \(0.50\)"):
        stop.place(model)
    assert model.weight.item() == 3


@pytest.fixture(scope="module")
def memoriser():
    """(model, tokenizer, file): a small model that knows one file with a key by heart."""
    file = f"import os\n\nkey = '{AWS}'\nprint(os.environ, key)\n"
    tokenizer = small_tokenizer([file], 280)
    torch.manual_seed(0)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(small_config(tokenizer, layers=1, width=48))
    rows = Examples([Example(file, source="app.py")])
    ids = torch.tensor([encode_all(rows, tokenizer)[0].input_ids])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval(), tokenizer, rows


def test_ends_by_itself_once_the_key_is_gone_and_the_code_stays(memoriser):
    """From 1 to below unseen text within a few epochs; the tokens around are still said."""
    from unwrite.scoring import score_answers

    model, tokenizer, rows = memoriser
    steps = StepCounter()
    objective = CodeEraser(accuracy_below=0.2, likelihood_below=0.1, retain_loss="none")
    unlearned = objective.apply(
        model, rows, processing_class=tokenizer, callbacks=[steps], copy=True,
        args={"learning_rate": 1e-3, "num_train_epochs": 40, "use_cpu": True},
    )  # fmt: skip
    assert 0 < steps.taken < 40
    (row,) = encode_all(Examples([Example(rows[0].answer, marked=((18, 38),))]), tokenizer)
    marked = torch.tensor(row.marked[1:])
    for subject, secret, around in ((model, 1.0, 1.0), (unlearned, 0.2, 0.8)):
        correct = torch.tensor(score_answers(subject, [row], pad_id=0)[0].correct).float()
        assert correct[~marked].mean() >= around
        assert (correct[marked].mean() >= secret) == (subject is model)


def test_a_model_that_never_saw_the_secret_is_left_as_it_is(memoriser):
    _, tokenizer, rows = memoriser
    from transformers import LlamaForCausalLM

    torch.manual_seed(1)
    fresh = LlamaForCausalLM(small_config(tokenizer, layers=1, width=48)).eval()
    before, steps = weights(fresh), StepCounter()
    with pytest.warns(Notice, match="so nothing is trained"):
        CodeEraser(accuracy_below=0.9, likelihood_below=0.9, retain_loss="none").apply(
            fresh, rows, processing_class=tokenizer, callbacks=[steps], args={"use_cpu": True}
        )
    assert steps.taken == 0
    assert all(torch.equal(one, before[name]) for name, one in weights(fresh).items())


def test_thresholds_come_from_the_unseen_texts(memoriser, monkeypatch):
    """What is measured on them before training decides; here it is what the model says of the secret itself, or just less."""
    model, tokenizer, rows = memoriser
    asked, steps = [], StepCounter()

    def measured(subject, tok, texts, *, n):
        asked.append((texts, n))
        return Thresholds(1.0, 1.0)

    monkeypatch.setattr("unwrite.forget.code_eraser.calibrate_threshold", measured)
    unseen = Examples([Example("print(1)")], "unseen")
    args = {"learning_rate": 1e-3, "num_train_epochs": 9, "use_cpu": True}
    CodeEraser(retain_loss="none", n=3).apply(
        model, rows, processing_class=tokenizer, holdout=unseen, callbacks=[steps], args=args, copy=True
    )
    assert asked == [(unseen, 3)]
    assert 0 < steps.taken < 9


def test_says_that_without_unseen_texts_all_epochs_are_trained(tokenizer, tiny_llama):
    with pytest.warns(Notice, match="all 2 epochs are trained"):
        train(CodeEraser(), tiny_llama, FORGET, RETAIN, tokenizer, num_train_epochs=2)


# Must hold 8


def test_refuses_retained_texts_that_are_to_be_forgotten(tokenizer, tiny_llama):
    with pytest.raises(DataError, match="forget and retain share 1 rows"):
        train(CodeEraser(), tiny_llama, FORGET, Examples([FORGET[0]]), tokenizer)


def test_refuses_a_retained_file_with_a_secret_of_a_forget_file_without_naming_it(tokenizer, tiny_llama):
    forget = Examples([Example(f"k = '{AWS}'", source="a.py")])
    retain = Examples([Example(f"other = '{AWS}'  # moved", source="b.py")])
    with pytest.raises(
        DataError, match=r"b.py is to be kept and holds a secret of 20 characters that a.py is to lose"
    ) as e:
        train(CodeEraser(), tiny_llama, forget, retain, tokenizer)
    assert AWS not in str(e.value)


# Refusals


def test_refuses_a_file_without_a_secret_by_its_name(tokenizer, tiny_llama):
    rows = Examples([Example(f"k = '{AWS}'", source="a.py"), Example("x = 1", source="plain.py")])
    with pytest.raises(DataError, match=r"plain\.py holds no e-mail address, IP address or key to forget"):
        train(CodeEraser(), tiny_llama, rows, RETAIN, tokenizer)


def test_refuses_a_row_whose_secret_is_never_predicted(tokenizer, tiny_llama):
    rows = Examples([text("ann lives near the river", 0, source="first.py")])
    with pytest.raises(DataError, match=r"1 of 1 rows mark nothing that the model predicts \(first: first.py\)"):
        train(CodeEraser(), tiny_llama, rows, RETAIN, tokenizer)


def test_refuses_to_wait_for_thresholds_that_nothing_gives(tokenizer, tiny_llama):
    with pytest.raises(DataError, match="needs thresholds, and there are neither unseen texts nor numbers"):
        train(CodeEraser(stop="required"), tiny_llama, FORGET, RETAIN, tokenizer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"on": "keys"}, "unknown on 'keys'"),
        ({"gamma": -1}, "gamma is -1; it must be a finite number, at least 0"),
        ({"constraint": math.nan}, "constraint is nan"),
        ({"accuracy_below": 0.3}, "go together: give both, or neither"),
        ({"stop": "soon"}, "unknown stop 'soon'"),
        ({"n": 0}, "n is 0; it must be a finite number, at least 1"),
    ],
)
def test_refuses_settings_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        CodeEraser(**fields)
