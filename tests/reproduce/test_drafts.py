"""Draft models distilled on their target's own text, and the control that draws siblings with replacement."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

sys.path.append(str(Path(__file__).parents[1] / "decode"))

from tabular import Tabular, hashed

from conftest import WORDS, make_llama, make_tokenizer
from tiny_gguf import make_model, write_gguf
from unwrite.beds import drafts
from unwrite.beds.draft_files import as_gguf
from unwrite.beds.drafts import agreement, made_of, own_text, truncated_draft
from unwrite.decode import DraftModel
from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.stopping import Stopping
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.models import anatomy, load_model, save
from unwrite.reproduce.rsd import BEAMS, BRANCHING, DraftRates, Independent, contenders
from unwrite.runs import cache_dir, drop

QUESTIONS = [" ".join(WORDS[i : i + 3]) for i in range(6, 56, 2)]
V = 5
TARGET, DRAFT = hashed(V, 1.5), hashed(V, 1.5, order=1)


@pytest.fixture
def target(tmp_path):
    """A random Llama that is sure of itself: 3 layers, on disk with its tokenizer."""
    model = make_llama(0)
    with torch.no_grad():
        model.lm_head.weight *= 12
    return save(model, tmp_path / "target", tokenizer=make_tokenizer())


def written(target, **settings):
    return own_text(target, length=24, questions=QUESTIONS, **settings)


def draft_of(target, text, **settings):
    return truncated_draft(target, 1, text=text, **{"epochs": 6, "lr": 5e-3, **settings})


def test_distillation_raises_acceptance_on_texts_it_never_saw(target):
    text = written(target)
    held = [text[i] for i in text.split()[1]]
    before = agreement(anatomy(load_model(target)).truncate(1).eval(), held)
    after = agreement(load_model(draft_of(target, text)).eval(), held)
    assert after["overlap"] > before["overlap"] + 0.05
    assert after["greedy"] > before["greedy"]


def test_a_distilled_draft_is_accepted_more_often_than_an_untrained_cut(target):
    """Tokens a forward of the target commits, greedy, over ten prompts."""
    model, text = load_model(target).eval(), written(target)

    def rate(draft):
        strategy = DraftModel(draft_model=draft.eval(), depth=3, cost_model=False)
        found = []
        for row in text[:10]:
            ids = row.ids[: len(row.ids) - row.new].long()[None]
            options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "return_dict_in_generate": True}
            found.append(
                model.generate(ids, max_new_tokens=20, custom_generate=strategy, **options).stats.tokens_per_forward
            )
        return np.mean(found)

    assert rate(load_model(draft_of(target, text))) > rate(anatomy(model).truncate(1))


def test_embeddings_and_head_stay_the_targets_and_the_rest_learns(target):
    model, draft = load_model(target), load_model(draft_of(target, written(target), epochs=1))
    assert torch.equal(draft.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert torch.equal(draft.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(draft.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(draft.model.norm.weight, model.model.norm.weight)


def test_what_is_kept_is_what_the_target_says(target):
    """Tokens and log-probabilities against a plain forward over each text; padding and batches leave no trace."""
    model, text = load_model(target).eval(), written(target)
    for row in [*text[:3], *text[-3:]]:
        with torch.no_grad():
            logits = model(row.ids.long()[None]).logits[0, -row.new - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, row.tokens.long())
        assert torch.allclose(row.log_p, expected, atol=1e-3)


def test_half_of_the_texts_are_greedy_and_half_are_not(target):
    text = written(target)
    greedy = [bool((row.ids[-row.new :] == row.tokens[:, 0]).all()) for row in text]
    half = len(text) // 2
    assert all(greedy[:half])
    assert not any(greedy[half:])


def test_both_texts_of_a_held_out_prompt_are_held_out(target):
    text = written(target)
    train, held = text.split()
    prompts = [tuple(row.ids[: len(row.ids) - row.new].tolist()) for row in text]
    assert held
    assert not {prompts[i] for i in train} & {prompts[i] for i in held}


def test_texts_are_written_once_and_gone_on_with(target, monkeypatch):
    first = written(target)
    (home,) = [path.parent for path in cache_dir("own-text").glob("*/0")]
    drop(home / "3")
    assert written(target).hash == first.hash
    monkeypatch.setattr(drafts, "_write", lambda *_: pytest.fail("wrote again"))
    assert written(target).hash == first.hash
    with pytest.raises(pytest.fail.Exception):
        written(target, seed=1)


def test_a_killed_distillation_goes_on_to_the_same_weights(target, tmp_path, monkeypatch):
    text, whole, calls = written(target), drafts._loss, []

    def dying(*args):
        calls.append(args)
        if len(calls) == 10:  # of six steps an epoch: in the second
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(drafts, "_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        draft_of(target, text, epochs=3)
    resumed = load_model(draft_of(target, text, epochs=3)).state_dict()
    assert len(calls) == 10 + 2 * 6
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "other"))
    straight = load_model(draft_of(target, text, epochs=3)).state_dict()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_cross_entropy_on_the_tokens_is_another_recipe(target):
    text = written(target)
    folders = {loss: draft_of(target, text, loss=loss, epochs=1) for loss in ("kl", "tokens")}
    assert folders["kl"] != folders["tokens"]
    assert made_of(folders["tokens"])["settings"]["loss"] == "tokens"
    assert made_of(folders["tokens"])["settings"]["layers"] == 1


def test_refuses_a_loss_it_does_not_know(target):
    with pytest.raises(MethodError, match="loss is 'mse'; use 'kl' or 'tokens'"):
        truncated_draft(target, 1, loss="mse")


def test_refuses_prompts_that_leave_no_room(target):
    with pytest.raises(DataError, match="leaves room for 128 tokens within 128"):
        own_text(target, length=128, questions=QUESTIONS)


def test_a_draft_as_gguf_holds_its_weights_under_the_targets_keys(tmp_path):
    """Half precision: a part in a thousand."""
    gguf = pytest.importorskip("gguf")
    model = make_model()
    like = write_gguf(tmp_path / "target.gguf", model)
    folder = save(anatomy(model).truncate(1), tmp_path / "draft")
    reader = gguf.GGUFReader(as_gguf(folder, tmp_path / "draft.gguf", like))
    stored, own = ({t.name: t.data for t in r.tensors} for r in (reader, gguf.GGUFReader(like)))
    assert set(stored) == {name for name in own if not name.startswith("blk.1.")}
    for name, weight in stored.items():
        assert np.allclose(weight, own[name], rtol=1e-3, atol=1e-4), name
    assert reader.fields["llama.block_count"].contents() == 1
    assert reader.fields["llama.attention.head_count_kv"].contents() == model.config.num_key_value_heads


def test_llama_cpp_says_what_the_draft_says(tmp_path):
    """Against transformers; half precision moves logits by a few hundredths."""
    pytest.importorskip("llama_cpp")
    from unwrite.decode import LlamaCppRuntime

    model = make_model()
    draft = anatomy(model).truncate(1)
    path = as_gguf(
        save(draft, tmp_path / "draft"), tmp_path / "draft.gguf", write_gguf(tmp_path / "target.gguf", model)
    )
    ids = np.array([5, 17, 60, 3])
    with LlamaCppRuntime(path, threads=1, max_nodes=1) as runtime, torch.no_grad():
        found = runtime.prefill([ids], 4)[0]
        assert torch.allclose(found, draft(torch.from_numpy(ids)[None]).logits[0, -1], atol=0.05)


def test_refuses_a_gguf_of_another_target(tmp_path):
    like = write_gguf(tmp_path / "target.gguf", make_model())
    with pytest.raises(ModelError, match="its width is not 32"):
        as_gguf(save(make_llama(), tmp_path / "draft"), tmp_path / "draft.gguf", like)
    assert not (tmp_path / "draft.gguf").exists()


def one_step(strategy, draws, count, prompt=(1, 2)):
    """Tokens that steps after a fixed prompt commit, and the trees."""
    runtime = Tabular(TARGET, V)
    drafter, ids = strategy.drafter(runtime, draws), np.array(prompt)
    runtime.prefill([ids[:-1]], 9)
    drafter.reset(ids, None)
    texts, trees = [], []
    for _ in range(count):
        tree, node, text = drafter.propose(ids, 99), 0, []
        while node is not None:
            token, node = drafter.accept(tree, node, TARGET((*prompt, *text)).float(), draws)
            text.append(token)
        texts.append(text)
        trees.append(tree)
    return texts, trees


def test_independent_siblings_leave_the_targets_joint_distribution():
    """Chi-square over 25 pairs of tokens, 2,500 steps, level 0.001."""
    draws = Sampling((), True, torch.Generator().manual_seed(1))
    texts, _ = one_step(Independent(draft_model=Tabular(DRAFT, V), branching=(2, 2)), draws, 2500)

    def after(text):
        return TARGET((1, 2, *text)).double().softmax(-1)

    counts = np.zeros((V, V))
    for text in texts:
        second = text[1] if len(text) > 1 else int(torch.multinomial(after(text[:1]), 1, generator=draws.generator))
        counts[text[0], second] += 1
    expected = np.array([[float(after([])[a] * after([a])[b]) for b in range(V)] for a in range(V)])
    assert chisquare(counts.ravel(), 2500 * expected.ravel()).pvalue > 1e-3


def test_two_independent_siblings_are_accepted_with_their_closed_form():
    """q = (.2, .3, .5), p = (.6, .3, .1): 0.64, where two different ones are accepted with 0.7; three standard errors."""
    q, p = (torch.tensor(x).log() for x in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1]))
    draws = Sampling((), True, torch.Generator().manual_seed(2))
    drafter = Independent(draft_model=Tabular(lambda ids: p, 3), branching=(2,)).drafter(
        Tabular(lambda ids: q, 3), draws
    )
    hits = [drafter.accept(drafter.propose(np.array([0, 1]), 99), 0, q, draws)[1] is not None for _ in range(6000)]
    assert np.mean(hits) == pytest.approx(0.64, abs=3 * 0.48 / 6000**0.5)


def test_equal_siblings_are_kept():
    draws = Sampling((), True, torch.Generator().manual_seed(3))
    _, trees = one_step(Independent(draft_model=Tabular(DRAFT, V), branching=(2, 2)), draws, 40)
    assert {tree.nodes for tree in trees} == {7}
    assert any(tree.without_twins().nodes < 7 for tree in trees)


def test_independent_siblings_are_refused_without_sampling():
    with pytest.raises(MethodError, match="do_sample=True"):
        generate(Tabular(TARGET, V), np.array([1, 2]), Independent(draft_model=Tabular(DRAFT, V)), stopping=Stopping(6))


@pytest.mark.parametrize("one", contenders(), ids=lambda one: f"{one.nodes} {one.name}")
def test_every_contender_drafts_exactly_its_nodes_over_its_levels(one):
    draws = Sampling((), True, torch.Generator().manual_seed(4))
    tree = (
        one.make(Tabular(hashed(16, order=1), 16)).drafter(Tabular(hashed(16), 16), draws).propose(np.array([1, 2]), 99)
    )
    assert tree.nodes - 1 == one.nodes
    assert tree.depths.max() == one.levels


def test_independent_siblings_and_rsd_have_the_same_shapes():
    assert set(BRANCHING) == set(BEAMS)
    shapes = {kind: [one.shape for one in contenders() if one.kind == kind] for kind in ("independent", "RSD-C")}
    assert shapes["independent"] == shapes["RSD-C"]


def test_a_lead_is_an_interval_of_the_ratio():
    slow, fast = DraftRates(1, [[20, 30, 40]], [[10, 15, 20]]), DraftRates(1, [[20, 30, 40]], [[8, 12, 16]])
    assert fast.lead(slow) == (pytest.approx(1.25), pytest.approx((1.25, 1.25)))
    assert slow.lead(slow) == (1, (1, 1))
    assert fast.by_seed == [2.5]
