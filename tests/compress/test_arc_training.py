"""Training an ARC encoder: what moves and what stays, what a batch is made of, and that rates are the published ones."""

import copy
import math

import pytest
import torch
from transformers import TrainerCallback

from helpers.architectures import tiny_tokenizer
from helpers.tiny import make_llama, make_tokenizer
from unwrite.compress import (
    ArcEncoder,
    ArcTrainer,
    ArcTraining,
    ContextText,
    LearnedText,
    context_pieces,
    few_shot_row,
    train_arc,
)
from unwrite.compress.contexts.batches import (
    PendingBatch,
    PendingRow,
    Translator,
    answering,
    context_loss,
    continuation,
    reconstruction,
)
from unwrite.compress.contexts.training import training_of
from unwrite.errors import DataError, MethodError, NotFinite

WORDS = 54
SHORT = ArcTraining(steps=3, batch_size=4, seq_len=8, lr=1e-3, projector_lr=5e-3, warmup=1)


def frozen(seed=1, **shape):
    return make_llama(seed, **shape).requires_grad_(False)


def make_encoder(*out, factor=4):
    torch.manual_seed(6)
    return ArcEncoder.from_causal_lm(make_llama(2), out_dims=out or [32], truncate=1, pooling_factor=factor)


def make_pieces(count=12, length=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, WORDS, (count, length), generator=generator).tolist()


def state(module):
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


def moved(before, module):
    return {name for name, one in module.state_dict().items() if not torch.equal(one, before[name])}


# What moves.


def test_the_decoder_stays_bit_for_bit_and_what_is_trained_moves():
    encoder, decoder = make_encoder(), frozen()
    first, second = state(encoder), state(decoder)
    train_arc(encoder, [decoder], make_pieces(), SHORT, encoder_tokenizer=make_tokenizer())
    assert moved(second, decoder) == set()
    assert all(one.grad is None for one in decoder.parameters())
    assert not encoder.training
    assert {name for name in first if name not in moved(first, encoder)} <= {"reconstruction.0"}


@pytest.mark.parametrize(("purpose", "still"), [("continuation", "reconstruction"), ("reconstruction", "continuation")])
def test_gradients_reach_encoder_projector_and_the_learned_vector_of_the_batch(purpose, still):
    encoder, decoder, same = make_encoder(32, 16), frozen(), Translator(make_tokenizer(), make_tokenizer())
    pieces = make_pieces(4)
    batch = continuation(pieces, same, same) if purpose == "continuation" else reconstruction(pieces, same, same, 8)
    context_loss(encoder, [decoder], batch).backward()
    without = {name for name, one in encoder.named_parameters() if one.grad is None or not one.grad.abs().sum()}
    others = {"continuation.1", "reconstruction.1", "projectors.1.first.weight", "projectors.1.second.weight"}
    assert without == {f"{still}.0", *others}
    assert all(one.grad is None for one in decoder.parameters())


def test_a_frozen_encoder_keeps_its_layers_for_a_new_decoder():
    encoder = make_encoder()
    encoder.add_decoder(16)
    decoders = [frozen(), frozen(3, hidden=16)]
    before = state(encoder)
    how = ArcTraining.new_decoder(steps=3, batch_size=4, seq_len=8, warmup=1, decoder_shares=(0, 1))
    train_arc(encoder, decoders, make_pieces(), how, encoder_tokenizer=make_tokenizer())
    changed = moved(before, encoder)
    assert {"projectors.1.first.weight", "projectors.1.second.weight"} <= changed
    assert changed <= {name for name in before if name.split(".")[1] == "1" and not name.startswith("layers")}
    assert all(one.requires_grad for one in encoder.parameters())  # as it was before


def test_a_frozen_encoders_layers_take_no_gradient_and_its_projectors_do():
    encoder, same = make_encoder(), Translator(make_tokenizer(), make_tokenizer())
    context_loss(encoder, [frozen()], continuation(make_pieces(4), same, same), frozen=True).backward()
    reached = {name.split(".")[0] for name, one in encoder.named_parameters() if one.grad is not None}
    assert reached == {"projectors", "continuation"}
    with training_of(encoder, ArcTraining.new_decoder()):
        trained = {name.split(".")[0] for name, one in encoder.named_parameters() if one.requires_grad}
    assert trained == {"projectors", "continuation", "reconstruction"}


def test_some_last_layers_are_trained_alone():
    encoder = make_encoder()
    before = state(encoder)
    how = ArcTraining(steps=2, batch_size=4, seq_len=8, lr=1e-3, warmup=1, trained_layers=1, train_embeddings=False)
    train_arc(encoder, [frozen()], make_pieces(), how, encoder_tokenizer=make_tokenizer())
    layers = {name.split(".")[1] for name in moved(before, encoder) if name.startswith("layers.")}
    assert layers == {"1"}
    assert torch.equal(encoder.embed_tokens.weight, before["embed_tokens.weight"])


def test_training_makes_continuations_likelier():
    """Every text's second half repeats its first token, which the decoder knows through the vectors alone."""
    torch.manual_seed(0)
    pieces = [[*row, *[row[0]] * 7] for row in torch.randint(6, 16, (32, 6)).tolist()]
    encoder, decoder, same = make_encoder(factor=2), frozen(), Translator(make_tokenizer(), make_tokenizer())
    batch = continuation(pieces, same, same)
    before = context_loss(encoder, [decoder], batch).item()
    how = ArcTraining(steps=15, batch_size=16, seq_len=6, lr=3e-3, projector_lr=1e-2, warmup=2, continuation=1.0)
    train_arc(encoder, [decoder], pieces, how, encoder_tokenizer=make_tokenizer())
    assert context_loss(encoder, [decoder], batch).item() < before - 0.05


def test_a_training_is_the_same_again_and_after_a_stop(tmp_path):
    pieces, decoder = make_pieces(), frozen()
    how = ArcTraining(steps=4, batch_size=4, seq_len=8, lr=1e-3, warmup=1, continuation=0.5)
    tokenizer = make_tokenizer()
    whole = train_arc(make_encoder(), [decoder], pieces, how, encoder_tokenizer=tokenizer)
    other = copy.deepcopy(make_encoder())
    options = {"folder": tmp_path, "save_strategy": "steps", "save_steps": 2}

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_training_stop = state.global_step == 2

    train_arc(other, [decoder], pieces, how, encoder_tokenizer=tokenizer, callbacks=[Stop()], **options)
    assert moved(state(whole), other)
    checkpoint = tmp_path / "checkpoint-2"
    assert checkpoint.is_dir()
    again = train_arc(make_encoder(), [decoder], pieces, how, encoder_tokenizer=tokenizer, resume=True, **options)
    assert moved(state(whole), again) == set()
    size = sum(one.numel() * 4 for one in whole.parameters())
    assert (checkpoint / "model.safetensors").stat().st_size < size + 20_000  # the encoder alone


# Batches.


def test_pieces_are_stretches_of_a_text_and_short_ones_are_left_out():
    texts = [list(range(40)), list(range(100, 106)), list(range(200, 207))]
    pieces = context_pieces(texts, 8)
    assert pieces == [list(range(17)), list(range(16, 33)), list(range(32, 40)), list(range(200, 207))]


def test_first_halves_are_compressed_and_second_halves_are_text():
    """As in sequence_iterators.py: of 17 tokens, 8 are compressed, 8 are inputs, and the last one is a target alone."""
    same = Translator(make_tokenizer(), make_tokenizer())
    batch = continuation([list(range(6, 23)), [9] * 8 + [3, 4, 5, 6]], same, same)
    assert batch.contexts == [list(range(6, 14)), [9] * 5]
    assert batch.rows[0] == PendingRow(list(range(14, 23)), [0], [True] * 9)
    assert batch.rows[1] == PendingRow([9, 9, 9, 3, 4, 5], [0], [False] * 6)  # one token over and over tells nothing
    assert (batch.purpose, batch.decoder) == ("continuation", 0)


def test_a_batch_in_which_nothing_is_learnt_has_loss_0_and_no_gradient():
    same, encoder = Translator(make_tokenizer(), make_tokenizer()), make_encoder()
    loss = context_loss(encoder, [frozen()], continuation([[9] * 9], same, same))
    loss.backward()
    assert loss.item() == 0.0
    assert not any(one.grad.abs().sum() for one in encoder.parameters() if one.grad is not None)


def test_a_reconstruction_predicts_what_is_compressed():
    same = Translator(make_tokenizer(), make_tokenizer())
    batch = reconstruction([list(range(6, 23))], same, same, 8)
    assert batch.contexts == [list(range(6, 14))]
    assert batch.rows == [PendingRow(list(range(6, 14)), [0], [True] * 8)]
    assert batch.purpose == "reconstruction"


def test_other_tokenizers_get_the_same_text():
    """One has "w3" as token 7, the other as token 6; beginnings and ends stay what they are."""
    source = tiny_tokenizer(bos_token="<s>", eos_token="</s>")
    target = tiny_tokenizer(bos_token="<pad>", eos_token="<unk>")
    vocabulary = target.get_vocab()
    target.get_vocab = lambda: {**vocabulary, "other": 99}
    translate = Translator(source, target)
    assert not translate.same
    assert Translator(source, source).same
    assert translate([7, 9, 30]) == [7, 9, 30]
    assert translate([1, 7, 9, 2]) == [0, 7, 9, 3]


def test_documents_between_questions_are_compressed_one_by_one_and_the_last_answer_is_learnt():
    shots = [(f"document {n}", f"question {n} ?", f"answer {n}") for n in range(8)]
    row = few_shot_row(shots, "</s>")
    documents = [one.text for one in row if isinstance(one, ContextText)]
    assert documents == [f"document {n}" for n in range(2, 8)]  # five before the last
    assert row[-1] == LearnedText(" answer 7</s>")
    assert sum(isinstance(one, LearnedText) for one in row) == 1
    assert row[:3] == ["Document: ", ContextText("document 2"), "\nQuestion: question 2 ?\nAnswer: answer 2\n\n"]
    assert [one.text for one in few_shot_row(shots, most=0) if isinstance(one, ContextText)] == ["document 7"]


def test_fine_tuning_rows_are_tokens_with_places_and_a_loss_on_the_answer():
    tokenizer = make_tokenizer()
    row = ["old", ContextText("green stone river"), "who ?", ContextText("book"), "what ?", LearnedText("ann wrote")]
    batch = answering([row], tokenizer, tokenizer)
    ids = [tokenizer(text)["input_ids"] for text in ("old", "who ?", "what ?", "ann wrote")]
    assert batch.contexts == [tokenizer("green stone river")["input_ids"], tokenizer("book")["input_ids"]]
    assert batch.rows == [PendingRow([token for one in ids for token in one], [1, 3], [False] * 5 + [True] * 2)]
    encoder, decoder = make_encoder(), frozen()
    before = state(encoder)
    train_arc(encoder, [decoder], [row] * 4, SHORT, encoder_tokenizer=tokenizer)
    assert "layers.0.mlp.up_proj.weight" in moved(before, encoder)
    with pytest.raises(DataError, match="row 1 has no answer to learn"):
        answering([row[:-1]], tokenizer, tokenizer)
    with pytest.raises(DataError, match="row 2 has an empty text to compress"):
        answering([row, [ContextText(""), "old", LearnedText("ann")]], tokenizer, tokenizer)


def trainer(how, decoders=2, rows=None, tmp_path=None):
    from transformers import TrainingArguments

    encoder = make_encoder(*[32] * decoders)
    args = TrainingArguments(
        str(tmp_path), max_steps=how.steps, report_to=[], use_cpu=True, remove_unused_columns=False
    )
    tokenizer = make_tokenizer()
    return ArcTrainer(
        encoder,
        [frozen(n) for n in range(decoders)],
        rows or make_pieces(),
        how,
        encoder_tokenizer=tokenizer,
        decoder_tokenizers=[tokenizer] * decoders,
        args=args,
    )


def test_batches_are_continued_or_written_out_and_decoders_drawn_as_often_as_asked(tmp_path):
    how = ArcTraining(steps=4, seq_len=8, warmup=1, decoder_shares=(0.25, 0.75))
    drawn = trainer(how, tmp_path=tmp_path)
    batches = [drawn.pending(make_pieces(2), step) for step in range(600)]
    share = sum(one.purpose == "continuation" for one in batches) / 600
    assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 600)
    assert abs(sum(one.decoder for one in batches) / 600 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 600)
    again = [drawn.pending(make_pieces(2), step) for step in range(20)]
    assert again == batches[:20]
    assert {drawn.pending(make_pieces(2), 0, part).purpose for part in range(30)} == {"continuation", "reconstruction"}


# The optimiser.


def test_projectors_have_a_rate_of_their_own_and_both_rise_once_and_fall_once(tmp_path):
    """OneCycleLR of train.py: cosine, warm-up 10 of 100 steps; the first moment falls from 0.95 to 0.85 and comes back."""
    how = ArcTraining(steps=100, seq_len=8, warmup=10)
    run = trainer(how, tmp_path=tmp_path)
    run.create_optimizer_and_scheduler(100)
    encoder, projectors = run.optimizer.param_groups
    names = {id(one): name for name, one in run.model.named_parameters()}
    assert {names[id(one)].split(".")[0] for one in projectors["params"]} == {"projectors"}
    assert {names[id(one)].split(".")[0] for one in encoder["params"]} == {
        "embed_tokens", "layers", "continuation", "reconstruction",
    }  # fmt: skip
    assert encoder["weight_decay"] == projectors["weight_decay"] == 0.1
    rates, moments = [], []
    for _ in range(100):
        rates.append((encoder["lr"], projectors["lr"]))
        moments.append(encoder["betas"])
        run.optimizer.step()
        run.lr_scheduler.step()
    peak = max(range(100), key=lambda step: rates[step][0])
    assert rates[0] == pytest.approx((1e-20, 5e-20))
    assert peak == 9
    assert rates[peak] == pytest.approx((1e-5, 5e-5))
    middle = 9 + 90 / 2  # half of a cosine's fall
    assert rates[int(middle)][0] == pytest.approx(5e-6, rel=0.02)
    assert rates[-1][0] == pytest.approx(1e-10, rel=1e-3)
    assert moments[0] == pytest.approx((0.95, 0.95))
    assert moments[peak] == pytest.approx((0.85, 0.95))
    assert moments[-1] == pytest.approx((0.95, 0.95), abs=1e-6)


def test_without_a_cycle_the_first_moment_is_nine_tenths(tmp_path):
    run = trainer(ArcTraining(steps=10, seq_len=8, warmup=2, cycle_momentum=False), tmp_path=tmp_path)
    run.create_optimizer_and_scheduler(10)
    run.optimizer.step()
    run.lr_scheduler.step()
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_the_defaults_are_the_papers():
    how = ArcTraining()
    assert (how.steps, how.batch_size, how.seq_len, how.continuation) == (100_000, 16, 256, 0.8)
    assert (how.lr, how.projector_lr, how.warmup, how.weight_decay, how.clip) == (1e-5, 5e-5, 1000, 0.1, 1.0)
    tuned = ArcTraining.fine_tuning()
    assert (tuned.steps, tuned.batch_size, tuned.seq_len, tuned.lr, tuned.projector_lr) == (4000, 8, 2048, 2e-6, 3e-5)
    assert (tuned.warmup, tuned.weight_decay, tuned.final_lr) == (50, 0.05, 1e-8)
    later = ArcTraining.new_decoder(steps=5, warmup=1)
    assert (later.freeze_encoder, later.lr, later.projector_lr, later.steps) == (True, 1e-4, 1e-4, 5)


# Refusals.


def test_a_decoder_that_would_be_trained_is_refused_before_anything_is_computed():
    encoder, decoder = make_encoder(), make_llama(1)
    with pytest.raises(
        MethodError, match=r"decoder 0 would be trained: 30 of its weights take gradients \(first: model"
    ):
        train_arc(encoder, [decoder], make_pieces(), SHORT, encoder_tokenizer=make_tokenizer())


@pytest.mark.parametrize(
    ("decoders", "rows", "how", "error", "message"),
    [
        ([], None, {}, MethodError, "0 decoders and 0 tokenizers"),
        ([32, 32], None, {}, MethodError, "no projector for decoder 1"),
        ([16], None, {}, MethodError, "gives vectors of 32 numbers"),
        ([32], None, {"decoder_shares": (1, 1)}, MethodError, "is for 2 decoders, not 1"),
        ([32], [], {}, DataError, "no rows to train on"),
        ([32], [[1, 2], []], {}, DataError, "no rows to train on, or an empty one"),
        ([32], [[1, 2], ["old", LearnedText("new")]], {}, DataError, "are mixed"),
    ],
)
def test_what_cant_be_trained_is_refused(decoders, rows, how, error, message):
    models = [frozen(hidden=width) for width in decoders]
    rows = make_pieces() if rows is None else rows
    settings = ArcTraining(**{"steps": 3, "seq_len": 8, "warmup": 1, **how})
    with pytest.raises(error, match=message):
        train_arc(make_encoder(), models, rows, settings, encoder_tokenizer=make_tokenizer())


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"seq_len": 2},
        {"lr": 0},
        {"projector_lr": float("nan")},
        {"warmup": 100_000},
        {"initial_lr": 1},
        {"final_lr": 0},
        {"weight_decay": -1},
        {"clip": 0},
        {"continuation": 1.1},
        {"decoder_shares": (0, 0)},
        {"trained_layers": -1},
    ],
)
def test_settings_of_training_without_meaning_are_refused(setting):
    with pytest.raises(MethodError, match=f"{next(iter(setting))}=.* has no meaning"):
        ArcTraining(**setting)


def test_texts_without_pieces_are_refused():
    with pytest.raises(DataError, match="none of 2 texts has 7 tokens"):
        context_pieces([[1, 2], [3]], 8)
    with pytest.raises(MethodError, match="pieces of 2 tokens leave nothing to predict"):
        context_pieces([[1] * 9], 2)
    with pytest.raises(DataError, match="at least one document"):
        few_shot_row([])


def test_a_loss_that_is_no_number_ends_the_training():
    encoder = make_encoder()
    encoder.embed_tokens.weight.data.fill_(math.nan)
    with pytest.raises(NotFinite, match=r"the loss is nan at step 1\. Lower lr or projector_lr"):
        train_arc(encoder, [frozen()], make_pieces(), SHORT, encoder_tokenizer=make_tokenizer())


def test_a_batch_may_have_rows_without_contexts():
    batch = PendingBatch([], [PendingRow([6, 7, 8], [], [True] * 3)], "continuation")
    decoder = frozen()
    expected = decoder(torch.tensor([[6, 7, 8]]), labels=torch.tensor([[6, 7, 8]])).loss
    assert context_loss(make_encoder(), [decoder], batch).item() == pytest.approx(expected.item(), abs=1e-6)
