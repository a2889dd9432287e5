"""Private rewriting of texts: the exponential mechanism over a masked language model's words, and what it does not cover."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from conftest import WORDS, make_llama, make_tokenizer
from unwrite.data import Example, Examples
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget.private.chance import Chance
from unwrite.forget.private.dp2unlearning import DPBase
from unwrite.forget.private.dp_sgd import DPSGD
from unwrite.forget.private.nouns import noun_probabilities, nouns_by_nltk
from unwrite.forget.private.rewriting import MaskedWords, Rewriting, temperature, word_probabilities
from unwrite.forget.private.tuning import DeploymentTuning
from unwrite.models import save

LOW, HIGH = Rewriting().low, Rewriting().high
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT = "Ann wrote the old book, and the river town was old."


def masked(seed=0, sharpness=15.0):
    """A random masked language model that reads a text and its masked form as a pair."""
    words = [*SPECIAL, *(word for word in WORDS if word.isalpha()), ",", "."]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= sharpness if weight.dim() > 1 else 1.0
    return MaskedWords(model, tokenizer)


@pytest.fixture(scope="module")
def words():
    return masked()


def test_the_temperature_is_twice_the_range_over_epsilon():
    assert temperature(10, LOW, HIGH) == pytest.approx(5.102822, abs=1e-6)
    assert temperature(1, LOW, HIGH) == pytest.approx(51.028221, abs=1e-5)
    logits = torch.linspace(0, 10, 6)
    assert torch.allclose(
        word_probabilities(logits, 10, LOW, HIGH), (logits.double() / 5.1028220).softmax(-1), atol=1e-7
    )


def pairs(count=1000, vocab=20):
    generator = torch.Generator().manual_seed(0)
    logits = LOW + (HIGH - LOW) * torch.rand(2, count, vocab, generator=generator, dtype=torch.float64)
    logits[:, :100] = torch.where(
        torch.rand(2, 100, vocab, generator=generator) < 0.5, LOW - 5, HIGH + 5
    ).double()  # beyond the range
    logits[0, 0], logits[1, 0] = LOW, LOW
    logits[0, 0, 0], logits[1, 0, 1:] = HIGH, HIGH  # the worst pair there is
    return logits


def largest_ratio(first, second):
    return float((first.log() - second.log()).nan_to_num(0.0, math.inf, -math.inf).abs().max())  # none where both are 0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 10.0])
def test_no_output_is_more_than_e_to_the_epsilon_likelier_for_one_text_than_for_another(epsilon):
    first, second = word_probabilities(pairs(), epsilon, LOW, HIGH)
    assert largest_ratio(first, second) <= epsilon + 1e-9
    assert largest_ratio(first, second) > 0.55 * epsilon
    half = [(one.clamp(LOW, HIGH) * epsilon / (HIGH - LOW)).softmax(-1) for one in pairs()]  # without the factor 2
    assert largest_ratio(*half) > epsilon
    top = [
        one.masked_fill(one < one.topk(10).values[:, -1:], -math.inf).softmax(-1) for one in pairs()
    ]  # the likeliest ten
    assert largest_ratio(*top) == math.inf


def test_a_large_epsilon_takes_the_likeliest_word_and_a_small_one_any(words):
    logits = words.logits("the old book", [(4, 7)])[0]
    assert word_probabilities(logits, math.inf, LOW, HIGH).argmax() == logits.clamp(LOW, HIGH).argmax()
    assert word_probabilities(logits, math.inf, LOW, HIGH).max() == 1.0
    assert word_probabilities(logits, 1e5, LOW, HIGH)[logits.argmax()] > 0.999
    chance, flat = Chance(0), word_probabilities(logits, 1e-6, LOW, HIGH)
    drawn = torch.bincount(torch.tensor([chance.one_of(flat) for _ in range(20_000)]), minlength=len(logits))
    assert chisquare(drawn.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("secure", [False, True])
def test_words_are_drawn_as_often_as_they_are_likely(secure):
    chance, likely = Chance(1, secure), torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    drawn = torch.bincount(torch.tensor([chance.one_of(likely) for _ in range(5000)]), minlength=4)
    assert drawn[1] == 0
    assert chisquare(drawn[[0, 2, 3]].numpy(), 5000 * likely[[0, 2, 3]].numpy()).pvalue > 1e-5


def test_a_text_keeps_stop_words_punctuation_and_capitals_and_all_else_is_drawn(words):
    made = Rewriting(epsilon=1e-6).rewritten(TEXT, words, Chance(3))
    assert made.words == 7  # Ann, wrote, old, book, river, town, old
    before, after = (
        TEXT.replace(",", " ,").replace(".", " .").split(),
        made.text.replace(",", " ,").replace(".", " .").split(),
    )
    assert [word for word in after if word in (",", ".")] >= [",", "."]
    assert [before[i] for i in (2, 6, 7)] == ["the", "and", "the"]
    assert made.text[0].isupper()
    assert " the " in made.text
    assert made.text != TEXT
    plain = Rewriting(epsilon=1e-6, keep_case=False, words="all").rewritten(TEXT, words, Chance(3))
    assert plain.words == 11
    assert plain.text == plain.text.lower()


def test_a_word_that_stands_twice_is_drawn_at_each_of_its_places(words):
    seen = {}

    class Watching(MaskedWords):
        def pairs(self, text, forms):
            seen[text] = forms
            return super().pairs(text, forms)

    watching = Watching(words.model, words.tokenizer)
    Rewriting(epsilon=math.inf).rewritten("old book old", watching, Chance(0))
    assert seen == {"old book old": ["[MASK] book old", "old [MASK] old", "old book [MASK]"]}


def test_the_mask_is_read_where_it_stands_in_the_second_text(words):
    inputs, place = words.pairs("old book", ["old [MASK]", "[MASK] book"])
    assert [int(inputs["input_ids"][row, at]) for row, at in enumerate(place)] == [4, 4]
    assert place.tolist() == [5, 4]  # [CLS] old book [SEP] ...
    one, both = words.logits("old book", [(4, 8)]), words.logits("old book", [(0, 3), (4, 8)])
    assert torch.allclose(one[0], both[1], atol=1e-5)


def test_without_chance_each_word_becomes_the_likeliest_that_may_be_drawn(words):
    logits, drawable = words.logits("old book", [(0, 3), (4, 8)]), words.outcomes(special_tokens=False)
    likeliest = [words.word(int(drawable[row.argmax()])) for row in logits[:, drawable].clamp(LOW, HIGH)]
    assert Rewriting(epsilon=math.inf).rewritten("old book", words, Chance(0)).text == " ".join(likeliest)


def test_special_tokens_are_drawn_only_where_they_are_asked_for(words):
    names = {*words.tokenizer.all_special_tokens}
    text, how = " ".join(["old"] * 20), Rewriting(epsilon=1e-6)
    assert not names & {*how.rewritten(text, words, Chance(0)).text.split()}
    assert names & {*replace(how, special_tokens=True).rewritten(text, words, Chance(0)).text.split()}


def test_the_same_seed_writes_the_same_and_the_system_does_not(words):
    how, text = Rewriting(epsilon=1.0), " ".join(["old"] * 15)
    assert how.rewritten(text, words, Chance(1)) == how.rewritten(text, words, Chance(1))
    secure = [how.rewritten(text, words, Chance(1, secure=True)).text for _ in range(2)]
    assert secure[0] != secure[1]


def test_rows_are_rewritten_whole_and_nothing_else_of_them_is_left(words):
    row = Example(
        "the red book", question="what was old?", history=(("user", "green river"),), paraphrased_answer="a book", entity="ann",
        perturbed_answers=("stone",),
    )  # fmt: skip
    made, counts = Rewriting(epsilon=1e-6).rows(Examples([row], "rows"), words)
    assert counts == [5]  # red book, old, green river
    (new,) = made
    assert (new.paraphrased_answer, new.perturbed_answers, new.entity) == (None, (), None)
    assert new.history[0][0] == "user"
    assert new.history != row.history
    assert new.answer.startswith("the ")
    assert new.question.endswith("?")


def test_rewriting_is_a_transform_of_data_sets(words):
    from datasets import Dataset

    rows = Dataset.from_dict({"text": ["old book", "river town"], "id": [1, 2]})
    made = rows.map(Rewriting(epsilon=1e-6).mapper(words, seed=2), load_from_cache_file=False)
    assert made["id"] == [1, 2]
    chance = Chance(2)
    assert made["text"][0] == Rewriting(epsilon=1e-6).rewritten("old book", words, chance).text


@pytest.mark.parametrize(
    ("text", "message"),
    [("old [MASK] book", r"holds \[MASK\]"), ("old " * 40, "have 83 tokens together, and the model has room for 62")],
)
def test_refuses_a_text_that_the_model_cant_read(words, text, message):
    with pytest.raises(DataError, match=message):
        Rewriting().rewritten(text, words, Chance(0))


def test_refuses_a_tokenizer_without_a_mask():
    with pytest.raises(ModelError, match="has no mask token"):
        MaskedWords(make_llama(), make_tokenizer())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", math.nan),
        ("variant", "top_k"),
        ("words", "some"),
        ("high", -6.0),
        ("low", math.nan),
        ("candidates", 1),
    ],
)
def test_a_setting_of_rewriting_without_meaning_is_refused_by_name(field, value):
    with pytest.raises(MethodError, match=field):
        Rewriting(**{field: value})


NOUNS = Rewriting(variant="dp2u_nouns", epsilon=1.0, nouns=lambda words: [word in ("book", "town") for word in words])


def test_the_official_variant_replaces_nouns_once_by_one_of_ten_likely_words(words):
    text = "the old book of the town was a book"
    made = NOUNS.rewritten(text, words, Chance(0))
    assert made.words == 2
    was, now = text.split(), made.text.split()
    assert [i for i in range(9) if was[i] != now[i]] in ([2, 5], [2], [5], [])
    assert now[8] == "book"  # only its first place
    likely, probabilities = noun_probabilities(text, (8, 12), words, 10, 1.0)
    assert len(likely) == 10
    logits = words.logits(text, [(8, 12)])[0]
    best = [words.word(token) for token in logits.argsort(descending=True).tolist() if words.word(token).isalpha()]
    assert likely == [word for word in best if word not in ("PAD", "UNK")][:10]
    ratio = float(probabilities.max() / probabilities.min())
    assert 1 <= ratio <= math.exp(2.0)  # a cosine lies within 2
    same, flat = noun_probabilities(text, (8, 12), words, 10, 1e-9)
    assert same == likely
    assert torch.allclose(flat, torch.full((10,), 0.1).double())


def test_the_official_variant_likens_words_by_their_states_at_the_place_of_the_mask(words):
    text, span = "the old book of the town", (8, 12)
    inputs, at = words.pairs(text, ["the old [MASK] of the town"])

    def state(token):
        ids = inputs["input_ids"].clone()
        ids[0, at] = token
        with torch.no_grad():
            output = words.model(**{**inputs, "input_ids": ids}, output_hidden_states=True)
        return torch.cat([layer[0, at[0]] for layer in output.hidden_states[-4:]]).double()

    likely, probabilities = noun_probabilities(text, span, words, 10, 3.0)
    tokens = words.tokenizer.convert_tokens_to_ids(likely)
    mask = state(words.tokenizer.mask_token_id)
    utility = torch.stack([torch.cosine_similarity(state(token), mask, dim=0) for token in tokens])
    assert torch.allclose(probabilities, (3.0 * utility).softmax(0), atol=1e-6)


def test_the_official_variants_choice_is_no_private_one(words):
    """The ten words are the text's own: what one text draws another can't."""
    sets = [
        {*noun_probabilities(f"{name} wrote the book", (len(name) + 11, len(name) + 15), words, 10, 1.0)[0]}
        for name in ("ann", "dov")
    ]
    assert sets[0] != sets[1]


def test_without_nltks_tagger_the_official_variant_says_what_to_do(monkeypatch):
    import nltk

    def missing(*_):
        raise LookupError

    monkeypatch.setattr(nltk, "pos_tag", missing)
    with pytest.raises(MethodError, match=r"nltk\.download.*or give a function as nouns"):
        nouns_by_nltk(["book"])
    monkeypatch.setattr(nltk, "pos_tag", lambda words: [(word, "NNS" if word == "books" else "VB") for word in words])
    assert nouns_by_nltk(["read", "books"]) == [False, True]


@pytest.fixture(scope="module")
def bases(words, tmp_path_factory):
    """A base of rewritten records by each variant."""
    home = tmp_path_factory.mktemp("rewritten")
    start = save(make_llama(layers=1, hidden=16), home / "start", tokenizer=make_tokenizer())
    data = Examples(
        [Example("the old book of ann"), Example("the town"), Example("the red river of bert was old")], "all"
    )
    made = SimpleNamespace(
        data=data, start=start, training=DeploymentTuning(epochs=1, rate=1e-3, batch=2, retraining_epochs=2)
    )
    for how in (Rewriting(epsilon=1.0), NOUNS):
        fitted = DPBase.fit(
            start,
            data,
            home / how.variant,
            tokenizer=make_tokenizer(),
            mechanism=how,
            masked=words,
            training=made.training,
        )
        setattr(made, how.variant, fitted)
    return made


def test_a_record_spends_epsilon_for_each_of_its_words_and_the_certificate_says_what_is_not_covered(bases, tmp_path):
    ledger = bases.dp_mlm.ledger
    assert (ledger.mechanism, ledger.delta) == ("dp_mlm", 0.0)
    assert ledger.account["epsilon_word"] == 1.0
    assert ledger.account["most_words"] == ledger.epsilon == 4  # red, river, bert, old
    assert ledger.account["words"] == 3 + 1 + 4
    certificate = bases.dp_mlm.unlearn(bases.data, [1], tmp_path / "um", bases.training).certificate
    assert certificate.group(2).epsilon == 8.0
    assert "other words in a record" in certificate.statement
    assert any("stop words" in note for note in certificate.notes)


def test_the_official_variant_makes_a_base_but_no_certificate(bases, tmp_path):
    base = bases.dp2u_nouns
    assert base.ledger.epsilon is None
    assert "dp2u_nouns: no formal guarantee" in base.ledger.sentence()
    with pytest.raises(
        MethodError, match="dp2u_nouns has no formal guarantee: the words it chooses from depend on the text"
    ):
        base.unlearn(bases.data, [1], tmp_path / "um", bases.training)
    assert base.unlearn(bases.data, [1], tmp_path / "um", bases.training, certify=False).certificate is None


def test_records_that_would_be_read_as_they_are_make_no_base(bases, words, tmp_path):
    data, given = Examples([Example("the and of"), Example("of the")], "stop words"), {"tokenizer": make_tokenizer()}
    with pytest.raises(DataError, match=r"have no word to rewrite.*words='all'"):
        DPBase.fit(bases.start, data, tmp_path / "a", mechanism=Rewriting(), masked=words, **given)
    assert not (tmp_path / "a").exists()


def test_each_mechanism_is_given_what_it_needs_and_nothing_else(bases, words, tmp_path):
    given = {"tokenizer": make_tokenizer()}
    with pytest.raises(MethodError, match="needs a masked language model"):
        DPBase.fit(bases.start, bases.data, tmp_path / "a", mechanism=Rewriting(), **given)
    with pytest.raises(MethodError, match="takes no adapters"):
        DPBase.fit(
            bases.start,
            bases.data,
            tmp_path / "a",
            mechanism=Rewriting(),
            masked=words,
            peft_config=LoraConfig(),
            **given,
        )
    with pytest.raises(MethodError, match="are for a base by Rewriting"):
        DPBase.fit(bases.start, bases.data, tmp_path / "a", mechanism=DPSGD(batch=2), masked=words, **given)
