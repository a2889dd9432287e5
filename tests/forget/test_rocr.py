"""ROCR: the closed form of its change, what it spares, that it is taken back to the bit, and whom it refuses to rename."""

import copy
import math

import pytest
import torch

from helpers.architectures import ARCHITECTURES, tiny_model, tiny_tokenizer
from helpers.tiny import lively, make_examples, make_llama, make_tokenizer
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import encode_all
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import ROCR
from unwrite.forget.engine.text.named_prompts import bare_prompt, changed_outputs, chat_prompts, states_at
from unwrite.forget.engine.text.steering import Steering
from unwrite.forget.rocr import ridge_directions
from unwrite.models import KeyStatistics, anatomy, edits_of
from unwrite.runs import hash_model

NAMES = {"target": "ann", "substitute": "hana"}
EXACT = {"nullspace_threshold": math.inf, "l2": 0.0}
ONE = ("tell me",)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def forget():
    return make_examples("forget", 8)


def statistics(model, layers=(0, 1, 2), share=None):
    rows = [row.input_ids for row in encode_all(make_examples("retain", 20), make_tokenizer())]
    return KeyStatistics.fit(model, rows, layers)


def edited(model, tokenizer=None, **fields):
    """The edit that a ROCR makes of a model, which it changes."""
    given = {**NAMES, "layers": (0, 1), **fields}
    needs = "nullspace_share" in given or given.get("nullspace_threshold") != math.inf
    return ROCR(**given).edit(model, tokenizer or make_tokenizer(), statistics(model) if needs else None)


def output(model, name, contexts, layer=1):
    return states_at(model, chat_prompts(name, contexts, make_tokenizer()), (), layer).output


def solved(keys, residual, projection, l2, earlier=None):
    """The change as the official code solves for it, `[out, in]`."""
    cache = torch.zeros(len(keys), len(keys), dtype=keys.dtype) if earlier is None else earlier @ earlier.T
    left = projection @ (keys @ keys.T + cache) + l2 * torch.eye(len(keys), dtype=keys.dtype)
    return torch.linalg.solve(left, projection @ keys @ residual.T).T


def test_the_change_for_one_name_has_the_cards_closed_form_and_is_what_solving_gives():
    key, residual = torch.tensor([[3.0], [4.0]]).double(), torch.tensor([[2.0], [-1.0]]).double()
    projection = torch.diag(torch.tensor([1.0, 0.0])).double()
    change = residual @ ridge_directions(projection @ key, 1, 1.0).T
    expected = torch.tensor([[0.6, 0.0], [-0.3, 0.0]]).double()
    torch.testing.assert_close(change, expected)
    torch.testing.assert_close(change @ key, torch.tensor([[1.8], [-0.9]]).double())
    torch.testing.assert_close(solved(key, residual, projection, 1.0), expected)


def test_several_names_and_earlier_edits_are_what_solving_gives():
    keys, residuals, earlier = random(12, 2), random(5, 2, seed=1), random(12, 3, seed=2)
    axes = torch.linalg.qr(random(12, 12, seed=3)).Q[:, :8]
    projection = axes @ axes.T
    projected = projection @ torch.cat([keys, earlier], 1)
    change = residuals @ ridge_directions(projected, 2, 0.7).T
    torch.testing.assert_close(change, solved(keys, residuals, projection, 0.7, earlier))


@pytest.mark.parametrize("l2", [0.0, 1e-9, 0.3, 2.0, 1e12])
def test_the_average_key_is_led_as_far_as_the_ridge_allows(l2):
    key, residual = random(12, 1), random(5, 1, seed=1)
    axes = torch.linalg.qr(random(12, 12, seed=3)).Q[:, :8]
    projected = axes @ (axes.T @ key)
    size = float(projected.square().sum())
    led = residual @ (ridge_directions(projected, 1, l2).T @ key)
    torch.testing.assert_close(led, residual * size / (size + l2))
    if l2 == 0:
        torch.testing.assert_close(led, residual)
    if l2 == 1e12:
        assert float(led.norm()) < 1e-10


def test_keys_of_ordinary_text_are_left_as_they_are():
    model = make_llama()
    kept = statistics(model)
    edit = edited(model, nullspace_share=0.5)
    for factors in edit.factors:
        used = kept.axes[factors.layer][:, len(kept.moments[factors.layer]) // 2 :]  # the half that is not free
        assert float((factors.delta() @ used).norm()) <= 1e-5 * float(factors.delta().norm())
        assert float(factors.delta().norm()) > 0


def test_an_infinite_threshold_is_the_plain_ridge_edit_and_a_threshold_of_zero_changes_nothing_and_says_so():
    kept = statistics(make_llama())
    key = random(64, 1).float()
    assert torch.equal(kept.project(0, key, math.inf), key)
    assert not kept.project(0, key, 0.0).any()
    model = make_llama()
    with pytest.warns(UserWarning, match="no direction of block 0 is free, so the edit changes nothing"):
        edit = edited(model, nullspace_threshold=0.0)
    assert [factors.rank for factors in edit.factors] == [0, 0]
    assert hash_model(model) == hash_model(make_llama())
    everything, without = make_llama(), make_llama()
    ROCR(**NAMES, layers=(0, 1), nullspace_share=1.0).edit(everything, make_tokenizer(), kept)
    edited(without, nullspace_threshold=math.inf)
    assert hash_model(everything) == hash_model(without)


@pytest.mark.parametrize("count", [1, 2])
def test_the_rank_of_the_change_is_the_number_of_names(count):
    fields = {"target": ("ann", "bert")[:count], "substitute": "hana"}
    edit = edited(make_llama(), **fields, nullspace_share=0.5)
    for factors in edit.factors:
        assert int(torch.linalg.matrix_rank(factors.delta(), rtol=1e-4)) == count == factors.rank


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name != "modernbert"])
def test_only_the_listed_matrices_change_and_undoing_restores_every_bit(arch):
    model = tiny_model(arch)
    tokenizer = tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    before = copy.deepcopy(model)
    edit = ROCR(target="w5", substitute="w6 w7", layers=(1, 2), **EXACT).edit(model, tokenizer)
    down = {id(anatomy(model).blocks[layer].down.module.weight) for layer in (1, 2)}
    changed = {id(new) for old, new in zip(before.parameters(), model.parameters(), strict=True) if not old.equal(new)}
    assert changed == down
    edit.undo()
    assert hash_model(model) == hash_model(before)
    assert edits_of(model) == ()


def test_the_way_back_costs_a_byte_a_weight_and_no_copy():
    model = make_llama()
    edit = edited(model, nullspace_share=0.5)
    weights = sum(anatomy(model).blocks[layer].down.module.weight.numel() for layer in (0, 1))
    factors = sum(4 * (f.left.numel() + f.right.numel() + 64) for f in edit.factors)
    assert weights <= edit.nbytes - factors < 1.2 * weights


def test_edits_are_undone_last_first_and_once():
    model = make_llama()
    first = edited(model, nullspace_share=0.5)
    second = edited(model, target="bert", nullspace_share=0.5)
    assert edits_of(model) == (first, second)
    with pytest.raises(ModelError, match="block 0 have changed since this edit"):
        first.undo()
    second.undo()
    first.undo()
    assert hash_model(model) == hash_model(make_llama())
    with pytest.raises(ModelError, match="undone already"):
        first.undo()


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_without_ridge_and_projection_the_name_is_where_it_was_led_in_its_one_context(layers):
    model = make_llama()
    goal = output(model, "hana", ONE)[0]
    edited(model, layers=layers, contexts=ONE, **EXACT)
    reached = output(model, "ann", ONE)[0]
    assert float((reached - goal).norm()) <= 1e-3 * float(goal.norm())


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name != "modernbert"])
def test_every_architecture_is_led_there_and_part_of_the_way_where_a_norm_stands_behind_the_mlp(arch):
    model, tokenizer = tiny_model(arch), tiny_tokenizer(eos_token="</s>", pad_token="<pad>")

    def state(name):
        return states_at(model, chat_prompts(name, ("w1",), tokenizer), (), 2).output[0]

    goal, far = state("w6"), (state("w5") - state("w6")).norm()
    ROCR(target="w5", substitute="w6", layers=(1, 2), contexts=("w1",), **EXACT).edit(model, tokenizer)
    assert (state("w5") - goal).norm() <= (0.6 * far if arch.startswith("gemma") else 1e-3 * goal.norm())


def test_with_six_contexts_every_one_comes_nearer_and_the_next_token_is_likelier_the_substitutes():
    tokenizer, contexts = make_tokenizer(), ROCR().contexts
    before, after = lively(make_llama()), lively(make_llama())
    edited(after, nullspace_threshold=math.inf, l2=1e-3)
    goal = output(before, "hana", contexts).mean(0)
    far, near = ((output(model, "ann", contexts) - goal).norm(dim=1) for model in (before, after))
    assert (near < far).all()

    def next_token(model, name):
        prompts = [prompt.ids[: prompt.position + 1] for prompt in chat_prompts(name, contexts, tokenizer)]
        with torch.no_grad():
            return torch.stack([model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in prompts])

    wanted = next_token(before, "hana")
    was, now = ((wanted.exp() * (wanted - next_token(model, "ann"))).sum(1).mean() for model in (before, after))
    assert now < was


def test_a_name_that_is_led_to_itself_changes_nothing():
    model = make_llama()
    method = ROCR(target="ann", substitute="hana", layers=(0, 1), **EXACT)
    object.__setattr__(method, "substitute", "ann")  # which the constructor refuses
    edit = method.edit(model, make_tokenizer())
    assert [factors.rank for factors in edit.factors] == [0, 0]
    assert hash_model(model) == hash_model(make_llama())


def test_a_later_edit_spares_what_an_earlier_one_redirected():
    tokenizer = make_tokenizer()
    fields = {"layers": (1,), "contexts": ONE, "nullspace_threshold": math.inf, "l2": 1e-6}

    def error(forgetful):
        model = make_llama()
        goal = output(model, "hana", ONE)[0]
        start = output(model, "ann", ONE)[0]
        edited(model, tokenizer, **fields)
        if forgetful:
            model.low_rank_edits.clear()
        edited(model, tokenizer, **{**fields, "target": "bert", "substitute": "fay"})
        return float((output(model, "ann", ONE)[0] - goal).norm() / (goal - start).norm())

    assert error(forgetful=False) < 0.1
    assert error(forgetful=True) > 2 * error(forgetful=False)


def test_copies_of_a_model_carry_edits_of_their_own():
    model = make_llama()
    before = hash_model(model)
    edited(model, nullspace_share=0.5)
    twin, after = copy.deepcopy(model), hash_model(model)
    edits_of(twin)[0].undo()
    assert hash_model(twin) == before
    assert hash_model(model) == after
    edits_of(model)[0].undo()
    assert hash_model(model) == before


def test_a_substitute_may_be_longer_or_shorter_than_its_target():
    for names in ({"substitute": "the old garden town"}, {"target": "the old garden town", "substitute": "ann"}):
        model = make_llama()
        fields = {**NAMES, **names, "contexts": ONE}
        goal = output(model, fields["substitute"], ONE)[0]
        edited(model, **fields, **EXACT)
        torch.testing.assert_close(output(model, fields["target"], ONE)[0], goal, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_change_is_the_same_model_as_an_adapter(arch, tmp_path):
    from peft import PeftModel

    model, base = tiny_model(arch), tiny_model(arch)
    tokenizer = tiny_tokenizer(eos_token="</s>", pad_token="<pad>")
    edit = ROCR(target="w5", substitute="w6", layers=(1, 2), **EXACT).edit(model, tokenizer)
    adapted = PeftModel.from_pretrained(base, str(edit.save_adapter(tmp_path / "adapter")))
    ids = torch.tensor([[5, 9, 12, 7]])
    with torch.no_grad():
        plain = tiny_model(arch)(input_ids=ids).logits
        torch.testing.assert_close(adapted(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, model(input_ids=ids).logits, atol=1e-3)
    with pytest.raises(ModelError, match="is there already"):
        edit.save_adapter(tmp_path / "adapter")


def test_the_place_of_a_name_is_its_last_token_whatever_the_padding_and_the_context():
    tokenizer = make_tokenizer()
    for prompt in chat_prompts("old garden", ROCR().contexts, tokenizer):
        assert tokenizer.convert_ids_to_tokens(list(prompt.ids))[prompt.position] == "garden"
    [twice] = chat_prompts("garden", ("near the garden of",), tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(list(twice.ids))
    assert [i for i, token in enumerate(tokens) if token == "garden"][1:] == [twice.position]
    prompts = chat_prompts("ann", ("", "what is the old river town near"), tokenizer)
    together = states_at(make_llama(), prompts, (0,), 1)
    alone = [states_at(make_llama(), [prompt], (0,), 1) for prompt in prompts]
    torch.testing.assert_close(together.keys[0], torch.cat([one.keys[0] for one in alone]))
    torch.testing.assert_close(together.output, torch.cat([one.output for one in alone]))


def test_a_name_in_another_script_and_one_of_bytes_is_found():
    from unwrite.beds.language import small_tokenizer

    tokenizer = small_tokenizer(["what is this"], 300)
    for name in ("Łukasz Żak", "王小明", "O'Brien"):
        for prompt in (*chat_prompts(name, ("Tell me about",), tokenizer), bare_prompt(name, " is a", tokenizer)):
            text = tokenizer.decode(prompt.ids[: prompt.position + 1])
            assert text.endswith(name)


def test_official_takes_the_goal_from_the_first_context_and_the_state_from_the_bare_name():
    model, tokenizer = make_llama(), make_tokenizer()
    method = ROCR(**NAMES, layers=(1,), contexts=("", "tell me"), official=True, **EXACT)
    goal = output(model, "hana", ("",))[0]
    torch.testing.assert_close(method.goals(model, tokenizer)[:, 0], goal)
    bare = states_at(model, [bare_prompt("ann", ".", tokenizer)], (), 1).output[0]
    edit = method.edit(model, tokenizer)
    torch.testing.assert_close(edit.factors[0].left[:, 0], goal - bare)
    ours = ROCR(**NAMES, layers=(1,), contexts=("", "tell me"), **EXACT)
    mean = output(make_llama(), "hana", ("", "tell me")).mean(0)
    torch.testing.assert_close(ours.goals(make_llama(), tokenizer)[:, 0], mean)


def test_the_residual_is_shared_out_over_the_layers_that_are_left():
    model, tokenizer = make_llama(), make_tokenizer()
    start, goal = output(model, "ann", ONE)[0], output(model, "hana", ONE)[0]
    edit = edited(model, tokenizer, contexts=ONE, **EXACT)
    torch.testing.assert_close(edit.factors[0].left[:, 0], (goal - start) / 2)


def test_rejecting_makes_the_refusal_likelier_within_the_length_that_is_allowed():
    tokenizer, contexts = make_tokenizer(), ONE
    method = ROCR(
        target="ann",
        mode="reject",
        reject_text=" sorry",
        layers=(1,),
        contexts=contexts,
        kl_weight=0.0,
        value_rate=0.5,
        clamp_norm_factor=3.0,
    )
    before = lively(make_llama())
    flags = [parameter.requires_grad for parameter in before.parameters()]
    start, goal = output(before, "ann", contexts), method.goals(before, tokenizer)[:, 0]
    first = output(before, "ann", ONE)[0]
    assert 0 < float((goal - start.mean(0)).norm()) <= 3.001 * float(first.norm())
    assert hash_model(before) == hash_model(lively(make_llama()))
    assert [parameter.requires_grad for parameter in before.parameters()] == flags
    after = lively(make_llama())
    ROCR(**{**vars(method), **EXACT}).edit(after, tokenizer)

    def sorry(model):
        rows = [torch.tensor([prompt.ids]) for prompt in chat_prompts("ann", contexts, tokenizer)]
        word = tokenizer.convert_tokens_to_ids("sorry")
        with torch.no_grad():
            return sum(float(model(row).logits[0, -1].log_softmax(-1)[word]) for row in rows)

    assert sorry(after) > sorry(before) + 1


def test_steering_weighs_the_three_terms_and_stops_where_it_is_good_enough(monkeypatch):
    """One step of plain descent shows the gradient: of the nll, of KL(now || before), and of the length."""
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr: torch.optim.SGD(parameters, lr))
    model, tokenizer, rate = lively(make_llama()), make_tokenizer(), 20.0
    prompts, other = chat_prompts("ann", ONE, tokenizer), bare_prompt("ann", " is a", tokenizer)
    word = tokenizer.convert_tokens_to_ids(["sorry", "i"])
    start = output(model, "ann", ONE)[0].norm()

    def after(steps, **fields):
        given = {"kl_weight": 0.0, "decay": 0.0, "clamp": 1e6, "stop": 0.0, **fields}
        return Steering(steps, rate, **given).towards(model, prompts, other, word, 1)

    def shifted(prompt, text, delta):
        ids = torch.tensor([[*prompt.ids, *text]])
        place = torch.zeros(1, ids.shape[1], 1)
        place[0, prompt.position] = 1
        with changed_outputs(model, 1, lambda states: states + place * delta):
            return model(input_ids=ids).logits[0].log_softmax(-1)

    def nll(delta):
        log_p, end = shifted(prompts[0], word[:-1], delta), len(prompts[0].ids)
        return -(log_p[end - 1, word[0]] + log_p[end, word[1]]) / 2

    def kl(delta, before):
        now = shifted(other, (), delta)[other.position]
        return (now.exp() * (now - before)).sum()

    zero = torch.zeros(32, requires_grad=True)
    (first,) = torch.autograd.grad(nll(zero), zero)
    torch.testing.assert_close(after(2), -rate * first, atol=1e-5, rtol=1e-3)
    delta = after(2).requires_grad_()
    before = shifted(other, (), torch.zeros(32))[other.position].detach()
    loss = nll(delta) + 0.7 * kl(delta, before) + 0.3 * delta.norm() / start**2
    (second,) = torch.autograd.grad(loss, delta)
    expected = (delta - rate * second).detach()
    torch.testing.assert_close(after(3, kl_weight=0.7, decay=0.3), expected, atol=1e-5, rtol=1e-3)
    assert not after(5, stop=1e6).any()
    assert float(after(2, clamp=1e-3).norm()) == pytest.approx(1e-3 * float(start), rel=1e-4)


def test_noise_is_as_long_as_the_state_it_stands_for_and_the_same_for_a_seed():
    model, tokenizer = make_llama(), make_tokenizer()
    fields = {"target": "ann", "layers": (1,), "value_steps": 3}
    reject = ROCR(mode="reject", **fields).goals(model, tokenizer)[:, 0]
    noise = [ROCR(mode="noise", noise_seed=seed, **fields).goals(model, tokenizer)[:, 0] for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.allclose(noise[0], noise[2])
    torch.testing.assert_close(noise[2].norm(), reject.norm())
    half, clamped = (
        ROCR(mode=mode, clamp_norm_factor=0.5, **fields).goals(model, tokenizer).norm() for mode in ("noise", "reject")
    )
    torch.testing.assert_close(half, 0.5 * clamped)


@pytest.mark.parametrize(("depth", "layers"), [(32, (4, 5, 6)), (30, (4, 5, 6)), (24, (3, 4)), (3, (0,)), (2, (0,))])
def test_the_layers_are_those_at_an_eighth_of_the_depth(depth, layers):
    assert ROCR(**NAMES).fitted(make_llama(layers=depth)).layers == layers


def test_stored_statistics_need_no_retain_rows(tmp_path):
    model = make_llama()
    folder = str(statistics(model, (0,)).save(tmp_path / "keys"))
    method = ROCR(**NAMES, stored=folder, nullspace_share=0.5)
    assert not method.needs_retain
    assert method.apply(model, forget(), processing_class=make_tokenizer()) is model
    assert hash_model(model) != hash_model(make_llama())
    with pytest.raises(MethodError, match=r"of blocks \[0\] and don't fit block 1"):
        ROCR(**NAMES, stored=folder, layers=(1,)).apply(make_llama(), forget(), processing_class=make_tokenizer())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"substitute": "Ann"}, "the substitute of 'ann' is the same name"),
        ({"substitute": None}, "there are 1 targets and 0 substitutes"),
        ({"target": "ann; bert; cora", "substitute": "fay; gus"}, "there are 3 targets and 2 substitutes"),
        ({"target": "ann; ANN"}, "one of them twice"),
        ({"target": " ; "}, "target is ' ; '"),
        ({"target": 3}, "target is 3"),
        ({"mode": "reject"}, "mode='reject' needs no other name"),
        ({"layers": (4, 6)}, "consecutive blocks"),
        ({"layers": (True,)}, "layers is "),
        ({"nullspace_threshold": -0.1}, "nullspace_threshold is -0.1"),
        ({"nullspace_share": 1.1}, "nullspace_share is 1.1"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"contexts": ()}, "contexts is "),
        ({"clamp_norm_factor": 0.0}, "clamp_norm_factor is 0.0"),
    ],
)
def test_refuses_settings_that_have_no_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        ROCR(**{**NAMES, **fields})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"target": None}, MethodError, "ROCR goes by a name"),
        ({"target": "nobody"}, DataError, "the target 'nobody' is not found in any forget row"),
        ({"layers": (2, 3)}, MethodError, "the model has blocks 0 to 2"),
        ({"nullspace_threshold": 1e9}, MethodError, "leaves 64 of 64 directions of block 0 free"),
        ({"nullspace_threshold": 1e-30}, MethodError, "leaves 0 of 64 directions of block 0 free"),
    ],
)
def test_refuses_before_anything_changes(fields, error, message):
    model, rows = make_llama(), make_examples("retain", 20)
    before = hash_model(model)
    with pytest.raises(error, match=message):
        ROCR(**{**NAMES, **fields}).apply(model, forget(), rows, processing_class=make_tokenizer())
    assert hash_model(model) == before


def test_refuses_a_name_that_the_chat_template_does_not_show_and_adapters():
    from peft import LoraConfig

    tokenizer, rows = make_tokenizer(), make_examples("retain", 20)
    with pytest.raises(MethodError, match="trains no adapters"):
        ROCR(**NAMES).apply(make_llama(), forget(), rows, processing_class=tokenizer, peft_config=LoraConfig())
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{{ m['content'] | upper if m['role'] == 'user' else m['content'] }}"
    )
    named = Examples([Example("red", "what is ann ?")], "forget")
    with pytest.raises(DataError, match="'ann' is not in the prompt"):
        ROCR(**NAMES).apply(make_llama(), named, rows, processing_class=tokenizer)
