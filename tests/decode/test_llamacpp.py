"""llama.cpp as a runtime: trees score as their paths do, bit for bit, and rollback leaves what plain decoding would have."""

import inspect
import string
import sys
import textwrap
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tiny_gguf import make_model, write_gguf
from unwrite.decode.aded import ADED
from unwrite.decode.base import Strategy
from unwrite.decode.draft_model import DraftModel
from unwrite.decode.engine.bridge import generate
from unwrite.decode.engine.llamacpp import check as llamacpp_check
from unwrite.decode.engine.llamacpp import runtime as llamacpp
from unwrite.decode.engine.llamacpp.runtime import MOST_ROWS, LlamaCppRuntime, below
from unwrite.decode.engine.planning.costs import SIZES
from unwrite.decode.engine.planning.curves import read_shape, write_shape
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.stopping import Stopping
from unwrite.decode.engine.tree import DraftTree
from unwrite.decode.joined import Joined
from unwrite.decode.plain import Plain
from unwrite.decode.prompt_lookup import PromptLookup
from unwrite.decode.rsd import RSD
from unwrite.decode.token_recycling import TokenRecycling
from unwrite.errors import MethodError, MissingExtra, ModelError
from unwrite.runs import cache_dir

VOCAB = 96


@pytest.fixture(scope="module")
def model():
    return make_model(VOCAB)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (unwrite[llamacpp]; it compiles)")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


@pytest.fixture
def runtime(file, monkeypatch):
    """In float32 a lone row needs a twin, whatever that costs beside so small a model."""
    monkeypatch.setattr(llamacpp_check, "_twin_costs", lambda runtime, length: 1.0)
    forget_knowledge()
    with LlamaCppRuntime(file, threads=1) as made:
        yield made


def random_tree(seed, nodes, vocab=VOCAB):
    draw = np.random.default_rng(seed)
    parents = [-1, *(int(draw.integers(max(0, node - 5), node)) for node in range(1, nodes))]
    return DraftTree.of(draw.integers(vocab, size=nodes), parents)


def ids(seed, count, vocab=VOCAB):
    return np.random.default_rng(seed).integers(vocab, size=count)


def path_to(tree, node):
    return np.flatnonzero(tree.ancestors[0, node]).tolist()


def one(token):
    return DraftTree.of([int(token)], [-1])


def plain_logits(runtime, prompt, tokens):
    """[tokens, vocab]: one-token decoding of a text behind a prompt."""
    runtime.prefill([prompt], len(tokens) + MOST_ROWS)
    rows = []
    for token in tokens:
        rows.append(runtime.forward(one(token)).logits[0, 0])
        runtime.commit([[0]])
    return torch.stack(rows)


def test_a_node_carries_the_sequences_of_the_leaves_below_it():
    tree = DraftTree.of([5, 6, 7, 8, 9], [-1, 0, 0, 1, 1])  # leaves: 2, 3, 4
    assert below(tree).astype(int).tolist() == [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_missing_wheel_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingExtra, match=r"unwrite\[llamacpp\]"):
        LlamaCppRuntime(tmp_path / "some.gguf")


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"none\.gguf does not exist"):
        LlamaCppRuntime(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("options", "what"), [({"threads": 0}, "threads is 0"), ({"max_nodes": 64}, "max_nodes is 64")]
)
def test_refuses_settings_out_of_range(options, what, tmp_path):
    with pytest.raises(MethodError, match=what):
        LlamaCppRuntime(tmp_path / "none.gguf", **options)


def test_refuses_a_damaged_file(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (unwrite[llamacpp]; it compiles)")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match="could not be loaded"):
        LlamaCppRuntime(tmp_path / "broken.gguf")


def test_a_tree_scores_as_transformers_scores_its_paths(runtime, model):
    """Keys and values are float16 in llama.cpp: up to 0.04 of logits of 5 to 8; a wrong mask or position moves them by more than 1."""
    prompt, tree = ids(0, 20), random_tree(1, 24)
    runtime.prefill([prompt], MOST_ROWS)
    found = runtime.forward(tree).logits[0]
    for node in range(tree.nodes):
        text = np.concatenate([prompt, tree.tokens[0, path_to(tree, node)]])
        with torch.inference_mode():
            expected = model(torch.from_numpy(text)[None]).logits[0, -1]
        assert torch.allclose(found[node], expected, atol=0.1)


def test_prefill_returns_the_logits_after_the_prompt(runtime, model):
    prompt = ids(0, 1100)  # more than two batches
    found = runtime.prefill([prompt], 8)
    with torch.inference_mode():
        assert torch.allclose(found[0], model(torch.from_numpy(prompt)[None]).logits[0, -1], atol=0.1)
    assert runtime.lengths.tolist() == [1100]


@pytest.mark.parametrize("length", [20, 300])
def test_a_tree_scores_as_its_paths_decoded_alone_bit_for_bit(runtime, length):
    prompt, tree = ids(2, length), random_tree(3, runtime.max_nodes)
    runtime.prefill([prompt], MOST_ROWS)
    found = runtime.forward(tree).logits[0]
    leaves = [node for node in range(tree.nodes) if node not in tree.parents[0]]
    for leaf in leaves[:8]:
        path = path_to(tree, leaf)
        assert torch.equal(found[path], plain_logits(runtime, prompt, tree.tokens[0, path]))


def test_after_any_rollback_the_next_logits_are_plain_decodings_bit_for_bit(runtime):
    prompt, text, found = ids(4, 12), [], []
    runtime.prefill([prompt], 400)
    for step in range(24):
        tree = random_tree(step, 2 + step % 20)
        path = path_to(tree, int(np.random.default_rng(step).integers(tree.nodes)))
        found.append(runtime.forward(tree).logits[0, path])
        runtime.commit([path])
        text += tree.tokens[0, path].tolist()
        assert runtime.lengths.tolist() == [len(prompt) + len(text)]
    assert max(len(rows) for rows in found) > 4
    assert torch.equal(torch.cat(found), plain_logits(runtime, prompt, text))


def test_dropping_a_whole_step_leaves_the_cache_as_it_was(runtime):
    prompt = ids(5, 30)
    runtime.prefill([prompt], MOST_ROWS)
    before = runtime.forward(one(7)).logits
    runtime.commit([[]])
    runtime.forward(random_tree(0, 20))
    runtime.commit([[]])
    assert torch.equal(runtime.forward(one(7)).logits, before)


def test_outputs_outlive_the_next_step(runtime):
    runtime.prefill([ids(6, 9)], MOST_ROWS)
    first = runtime.forward(one(3)).logits
    kept = first.clone()
    runtime.commit([[0]])
    runtime.forward(one(4))
    assert torch.equal(first, kept)


def test_the_cache_counts_its_own_storage(runtime):
    assert runtime.nbytes() == 0
    runtime.prefill([ids(7, 30)], 200)
    assert runtime.nbytes() == 256 * 2 * 2 * (2 * 32) * 2  # cells, layers, keys and values, heads x width, bytes


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda r: r.prefill([ids(0, 4), ids(1, 4)], 8), "the batch has 2"),
        (lambda r: r.prefill([ids(0, 0)], 8), "prompt is empty"),
        (lambda r: r.forward(DraftTree.chain(1, [2] * MOST_ROWS)), "64 nodes"),
        (lambda r: r.forward(one(1), frozenset({"logits", "final_hidden"})), "logits only, not final_hidden"),
        (lambda r: r.forward(one(1), graft=object()), "not a graft"),
        (lambda r: r.commit([[0]]), "call forward first"),
    ],
)
def test_refuses_what_it_can_not_do(runtime, call, what):
    runtime.prefill([ids(0, 4)], 8)
    with pytest.raises(MethodError, match=what):
        call(runtime)


def test_refuses_to_go_on_once_closed(file):
    runtime = LlamaCppRuntime(file, threads=1, max_nodes=1)
    runtime.prefill([ids(0, 4)], 8)
    runtime.close()
    with pytest.raises(MethodError, match=r"tiny\.gguf was closed"):
        runtime.prefill([ids(0, 4)], 8)
    with pytest.raises(MethodError, match="prefill first"):
        runtime.forward(one(1))


def test_the_check_runs_once_for_a_file(file, monkeypatch):
    LlamaCppRuntime(file, threads=1).close()
    monkeypatch.setattr(llamacpp, "check", lambda runtime: pytest.fail("checked again"))
    LlamaCppRuntime(file, threads=1).close()


def test_a_file_whose_trees_disagree_decodes_plainly_and_says_so(file, monkeypatch):
    monkeypatch.setattr(llamacpp_check, "_agreeing", lambda together, alone: 1)
    with pytest.warns(UserWarning, match=r"tiny\.gguf.*without drafts"):
        runtime = LlamaCppRuntime(file, threads=1)
    assert runtime.max_nodes == 1
    found = generate(runtime, ids(8, 10), PromptLookup(), stopping=Stopping(20))
    assert found.stats.forwards == len(found.sequences[0]) == 10


def test_the_check_takes_the_largest_size_up_to_which_all_agree(monkeypatch):
    alone = torch.arange(63.0)[:, None]
    wrong = alone[:24] + (torch.arange(24) == 23)[:, None]
    together = [alone[:2], alone[:8], wrong, alone[:63]]
    assert llamacpp_check._agreeing(together, alone) == 8
    assert llamacpp_check._agreeing([alone[:2] + 1, *together], alone) == 1


@pytest.mark.parametrize("twin_from", [None, 0])
def test_a_twin_changes_no_more_than_last_bits_and_leaves_nothing_behind(runtime, twin_from):
    runtime.twin_from = None
    expected = plain_logits(runtime, ids(9, 20), ids(10, 30))
    runtime.twin_from = twin_from
    assert torch.allclose(plain_logits(runtime, ids(9, 20), ids(10, 30)), expected, atol=0.05)


def test_a_full_cache_still_has_room_for_a_twin(runtime):
    assert runtime.twin_from == 0  # float32: one row and several go through other kernels
    runtime.prefill([ids(0, 200)], 55)  # a context of just 256 cells, which the next text must not fill
    runtime.prefill([ids(0, 250)], 6)
    for token in range(6):
        runtime.forward(one(token))
        runtime.commit([[0]])
    assert runtime.lengths.tolist() == [256]


def alone(runtime, prompt, count):
    """[count] greedy tokens of lone rows, by `step`; ends do not count."""
    tokens = [int(runtime.prefill([prompt], count)[0].argmax())]
    while len(tokens) < count:
        tokens.append(int(runtime.step(tokens[-1]).argmax()))
    return tokens


@pytest.mark.parametrize("twin_from", [None, 0, 30])
def test_a_plain_step_keeps_its_token_and_says_what_a_forward_says(runtime, twin_from):
    runtime.twin_from = twin_from
    prompt, tokens = ids(9, 20), ids(10, 30)
    expected = plain_logits(runtime, prompt, tokens)
    runtime.prefill([prompt], 30)
    for token, logits in zip(tokens, expected, strict=True):
        assert torch.equal(runtime.step(int(token)), logits)
    assert runtime.lengths.tolist() == [50]
    tree = random_tree(3, 12)  # whatever came before, a tree finds its prefix
    found = runtime.forward(tree).logits
    runtime.prefill([np.concatenate([prompt, tokens])], 30)
    assert torch.allclose(runtime.forward(tree).logits, found, atol=0.05)


@pytest.mark.parametrize("plain_from", [0, 40])
def test_where_a_twin_would_cost_too_much_nothing_is_drafted(file, monkeypatch, plain_from):
    monkeypatch.setattr(llamacpp_check, "_twin_costs", lambda runtime, length: 2.0)
    with LlamaCppRuntime(file, threads=1) as runtime, LlamaCppRuntime(file, threads=1, max_nodes=1) as lone:
        assert runtime._plain_from == 0
        assert runtime.twin_from is None
        runtime._plain_from = plain_from
        prompt = np.tile(ids(1, 12), 2)
        found = generate(runtime, prompt, PromptLookup(cost_model=False), stopping=Stopping(len(prompt) + 60))
        if plain_from == 0:
            assert found.stats.drafted == 0
            assert found.sequences == [alone(lone, prompt, 60)]
        else:
            assert found.stats.drafted > 0
            assert max(int(rows) for rows in found.stats.rows) <= plain_from - len(prompt)


def test_a_draft_reaches_no_further_than_plain_decoding_agrees(runtime):
    assert runtime.reach(100) is None
    runtime._plain_from = 40
    assert [runtime.reach(length) for length in (20, 38, 39, 40, 50)] == [19, 1, 0, 0, 0]


def test_what_the_check_ran_is_the_first_belief_in_costs(file):
    with LlamaCppRuntime(file, threads=1) as runtime:
        shape = read_shape(runtime.fingerprint)
        assert shape is not None
        assert shape[0] == 1.0
        assert all(few <= many for few, many in pairwise(shape))
        write_shape(runtime.fingerprint, shape[::-1])  # what drafting has measured since is not written over
        for stored in cache_dir("llamacpp").glob("*.json"):
            stored.unlink()
    with LlamaCppRuntime(file, threads=1) as runtime:
        assert read_shape(runtime.fingerprint) == shape[::-1]


def test_costs_that_were_lost_come_back_from_the_stored_check(file, monkeypatch):
    with LlamaCppRuntime(file, threads=1) as runtime:
        shape = read_shape(runtime.fingerprint)
    for stored in cache_dir("forward-costs").glob("*.json"):
        stored.unlink()
    monkeypatch.setattr(llamacpp, "check", None)
    with LlamaCppRuntime(file, threads=1) as runtime:
        assert read_shape(runtime.fingerprint) == shape


def test_costs_between_the_sizes_that_ran_lie_in_proportion():
    shape = llamacpp_check._shape({1: [9.0, 1.0, 1.0], 2: [2.0], 5: [5.0], 13: [4.0], 63: [55.0]})
    at = dict(zip(SIZES, shape, strict=True))
    assert (at[1], at[2], at[3], at[4], at[6], at[12]) == (1.0, 2.0, 3.0, 4.0, 5.0, 5.0)
    assert at[64] == pytest.approx(56.0)
    assert at[128] == pytest.approx(120.0)


def test_what_a_twin_costs_is_timed(file):
    with LlamaCppRuntime(file, threads=1, max_nodes=1) as runtime:
        assert 0.2 < llamacpp_check._twin_costs(runtime, 20) < 20


@dataclass(frozen=True, kw_only=True)
class Hidden(Strategy):
    needs = frozenset({"logits", "final_hidden"})

    def drafter(self, runtime, sampling):
        pytest.fail("not refused")


def test_a_drafter_that_needs_hidden_states_is_refused_before_the_first_token(runtime):
    with pytest.raises(MethodError, match="needs final_hidden"):
        generate(runtime, ids(8, 10), Hidden(), stopping=Stopping(20))


def plain(runtime, prompt, count):
    """The greedy text, one token a forward."""
    token, found = int(runtime.prefill([prompt], count)[0].argmax()), []
    while True:
        found.append(token)
        if token in runtime.eos_token_ids or len(found) == count:
            return found
        token = int(runtime.forward(one(token)).logits[0, 0].argmax())
        runtime.commit([[0]])


@pytest.mark.parametrize("strategy", [PromptLookup, TokenRecycling, ADED])
def test_greedy_text_is_one_token_decodings(runtime, strategy):
    for seed in range(3):
        prompt = np.tile(ids(seed, 12), 3)
        for cost_model in (True, False):
            stop = Stopping(len(prompt) + 60, frozenset(runtime.eos_token_ids))
            found = generate(runtime, prompt, strategy(cost_model=cost_model), stopping=stop)
            assert found.sequences == [plain(runtime, prompt, 60)]


@pytest.mark.parametrize("strategy", [PromptLookup, TokenRecycling, ADED])
def test_sampled_text_is_plain_decodings_at_the_same_seed(runtime, strategy):
    config = GenerationConfig(max_new_tokens=60, do_sample=True, temperature=0.3, top_k=20)
    for seed in range(3):
        prompt, texts = np.tile(ids(seed, 12), 3), []
        for made in (Plain(), strategy(cost_model=False)):
            torch.manual_seed(seed)
            texts.append(generate(runtime, prompt, made, config))
        assert texts[1].sequences == texts[0].sequences
        assert texts[1].stats.drafted > 0


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (unwrite[llamacpp]; it compiles)")
    from unwrite.models.bundled import gguf_file
    from unwrite.models.requantise import requantise

    return requantise(gguf_file("smollm2-135m"), "q8_0", tmp_path_factory.mktemp("gguf") / "smollm2.q8_0.gguf")


@pytest.mark.slow
def test_a_quantised_model_takes_whole_trees(bundled):
    for threads in (1, 2):
        with LlamaCppRuntime(bundled, threads=threads) as runtime:
            assert runtime.max_nodes == MOST_ROWS


@pytest.mark.slow
def test_the_tokenizer_and_the_template_are_transformers_own(bundled):
    from unwrite.models import load

    tokenizer = load("smollm2-135m").tokenizer
    messages = [{"role": "user", "content": "Où est <|im_end|> le Louvre?\n\n    x = 1"}]
    with LlamaCppRuntime(bundled, threads=1, max_nodes=1) as runtime:
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert runtime.chat(messages).tolist() == list(expected)
        text = "Zwölf Boxkämpfer, 12 > 3!\n"
        assert runtime.encode(text).tolist() == tokenizer(text)["input_ids"]
        assert runtime.decode(runtime.encode(text)) == text
        assert tokenizer.eos_token_id in runtime.eos_token_ids
        assert runtime.encode("<|im_end|>").tolist() != [tokenizer.eos_token_id]


def documents(count):
    """Documentation of the standard library, to summarise and to rewrite."""
    found = [inspect.getdoc(value) for module in (textwrap, string, inspect) for value in vars(module).values()]
    return [text[:240] for text in dict.fromkeys(found) if text and len(text) > 150][:count]


@pytest.fixture(scope="module")
def forty(bundled):
    """[(prompt, its text decoded one token a forward)]"""
    asks = ("Rewrite in simpler words", "Repeat with the first word in capitals")
    with LlamaCppRuntime(bundled, threads=1) as runtime:
        rows = [runtime.chat([{"role": "user", "content": f"{ask}: {text}"}]) for text in documents(20) for ask in asks]
        assert len(rows) == 40
        return [(row, plain(runtime, row, 64)) for row in rows]


@pytest.fixture(scope="module")
def small(bundled, tmp_path_factory):
    """The first three layers of the target as a draft in the same number format."""
    from unwrite.beds.draft_files import as_gguf
    from unwrite.models import anatomy, load, save
    from unwrite.models.requantise import requantise

    home = tmp_path_factory.mktemp("draft")
    folder = save(anatomy(load("smollm2-135m").model).truncate(3), home / "draft")
    return requantise(as_gguf(folder, home / "draft.gguf", bundled), "q8_0", home / "draft.q8_0.gguf")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "strategy",
    [made(cost_model=False, budget=12) for made in (PromptLookup, TokenRecycling, ADED, Joined)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_forty_texts_of_a_quantised_model_are_one_token_decodings(bundled, forty, strategy):
    with LlamaCppRuntime(bundled, threads=1) as runtime:
        assert saved(runtime, strategy, forty) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "made",
    [
        lambda draft: DraftModel(draft_model=draft, depth=3, cost_model=False),
        lambda draft: RSD(draft_model=draft, mode="C", branching=(2, 2), cost_model=False),
        lambda draft: RSD(draft_model=draft, mode="S", beam_width=3, depth=2, cost_model=False),
    ],
    ids=["DraftModel", "RSD-C", "RSD-S"],
)
def test_forty_texts_drafted_by_a_smaller_file_are_one_token_decodings(bundled, small, forty, made):
    with LlamaCppRuntime(bundled, threads=1) as runtime, LlamaCppRuntime(small, threads=1) as draft:
        assert saved(runtime, made(draft), forty) >= 0


def saved(runtime, strategy, forty):
    """Forwards saved over all texts, each of which must be as it is without drafts."""
    fewer = drafted = 0
    for prompt, expected in forty:
        stop = Stopping(len(prompt) + 64, frozenset(runtime.eos_token_ids))
        found = generate(runtime, prompt, strategy, stopping=stop)
        assert found.sequences == [expected]
        drafted += found.stats.drafted
        fewer += len(expected) - found.stats.forwards
    assert drafted > 0
    return fewer
