"""A model behind agents: what of it is generated, streamed, scored, saved and loaded. No network."""

import json

import pytest
import torch
from scripted_agents import Script
from transformers import LogitsProcessorList

from conftest import WORDS, make_llama, make_tokenizer
from unwrite.beds.language import small_tokenizer
from unwrite.data import Example, Examples
from unwrite.decode import PromptLookup
from unwrite.errors import MethodError, ModelError, Notice
from unwrite.forget import ALU, AgentModel, EndpointChat
from unwrite.forget.engine.text.agent_model import AgentSettings
from unwrite.forget.engine.text.agents import endpoint
from unwrite.forget.engine.text.agents.chat import LocalChat
from unwrite.forget.engine.text.agents.wording import Prompts
from unwrite.models import load, save

TOKENIZER = make_tokenizer()


def ids(words):
    return TOKENIZER(words)["input_ids"]


def decoded(rows):
    return [TOKENIZER.decode(row, skip_special_tokens=True) for row in rows]


def guarded(script=None, positions=2048, **settings):
    settings = {"subjects": ("ann",), "refusal": "sorry , i do not know", **settings}
    agents = {} if script is None else {name: chat for name, chat in script.chats().items() if name != "vanilla"}
    target = make_llama(0, max_position_embeddings=positions)
    return AgentModel(target, TOKENIZER, AgentSettings(**settings), agents=agents)


PROMPT = ids("<user> what is red ? <assistant>")


@pytest.fixture
def clean():
    return guarded(Script(detect="None"))


def test_where_nothing_is_detected_the_tokens_are_the_models_own(clean):
    prompt = torch.tensor([PROMPT])
    for options in (
        {},
        {"num_beams": 2},
        {"custom_generate": PromptLookup()},
        {"return_dict_in_generate": True},
        {"repetition_penalty": 1.5, "min_new_tokens": 3},
    ):
        mine, own = (one.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=7, do_sample=False, **options) for one in (clean, clean.target))  # fmt: skip
        mine, own = (getattr(one, "sequences", one) for one in (mine, own))
        assert mine.tolist() == own.tolist()


def test_what_the_composer_wrote_comes_behind_the_prompt_and_ends():
    model = guarded(Script(detect="ann", composer="the old river"))
    out = model.generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=12)
    assert out[0, : len(PROMPT)].tolist() == PROMPT
    assert out[0, len(PROMPT) :].tolist() == [*ids("the old river"), 2]
    assert model.answers[0].calls == ("vanilla", "detect", "erase", "critic", "composer")
    assert model.generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=2).shape[1] == len(PROMPT) + 2
    assert model.generate(input_ids=torch.tensor([PROMPT]), max_length=len(PROMPT) + 3).shape[1] == len(PROMPT) + 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_other_rows_change_no_row(side, clean):
    short, long = PROMPT, ids("<user> who was bert in the old town near the river ? <assistant>")
    padding = [0] * (len(long) - len(short))
    batch = torch.tensor([long, [*padding, *short] if side == "left" else [*short, *padding]])
    for mask in ((batch != 0).long(), None):
        both = clean.generate(input_ids=batch, attention_mask=mask, max_new_tokens=6, do_sample=False)
        alone = clean.generate(input_ids=torch.tensor([short]), max_new_tokens=6, do_sample=False)
        assert torch.equal(both[:, : len(long)], batch)
        written = both[1, len(long) :].tolist()[: alone.shape[1] - len(short)]
        assert written == alone[0, len(short) :].tolist()


def test_rows_of_a_batch_go_through_the_chain_each_by_itself():
    model = guarded(Script(detect=["ann", "None"], composer="the old river"))
    batch = torch.tensor([ids("<user> who was ann ? <assistant>"), PROMPT])
    out = model.generate(input_ids=batch, max_new_tokens=6, do_sample=False)
    assert decoded(out[:1, 6:]) == ["the old river"]
    own = model.target.generate(input_ids=batch[1:], max_new_tokens=6, do_sample=False)[0, 6:].tolist()
    assert out[1, 6:].tolist()[: len(own)] == own
    assert [one.detected for one in model.answers] == [("ann",), None]


def test_sampling_goes_by_its_seed_and_every_copy_through_the_chain(clean):
    prompt = torch.tensor([PROMPT])

    def drawn(seed):
        torch.manual_seed(seed)
        return clean.generate(input_ids=prompt, max_new_tokens=6, do_sample=True, num_return_sequences=3)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert len(clean.answers) == 3
    assert len({tuple(row) for row in drawn(1).tolist()}) > 1


def test_a_streamer_gets_the_prompt_and_the_composed_answer_alone():
    class Shown:
        def __init__(self):
            self.values, self.over = [], False

        def put(self, value):
            self.values.append(value.flatten().tolist())

        def end(self):
            self.over = True

    shown = Shown()
    model = guarded(Script(detect="ann", composer="the old river"))
    model.generate(input_ids=torch.tensor([PROMPT]), streamer=shown, max_new_tokens=9)
    assert shown.values == [PROMPT, *([one] for one in ids("the old river")), [2]]
    assert shown.over


def test_a_strategy_is_that_of_every_call_of_the_model_inside(monkeypatch):
    seen = []

    def strategy(model, input_ids, **kwargs):
        seen.append(input_ids.shape[1])
        return torch.cat([input_ids, torch.tensor([ids("the old")])], 1)

    model = guarded()
    monkeypatch.setattr(model, "chosen", AgentSettings(subjects=("ann",), retries=0))
    model.generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=4, custom_generate=strategy)
    assert seen[0] == len(PROMPT)
    assert len(seen) == 3  # vanilla, detect, erase
    assert min(seen[1:]) > 50


def test_limits_and_processors_of_a_call_are_those_of_the_answer_alone(monkeypatch):
    model, seen = guarded(retries=0, agent_tokens=9), []
    inside = model.target.generate

    def generate(input_ids, **options):
        seen.append((options.get("max_new_tokens"), options.get("min_new_tokens"), "logits_processor" in options))
        return inside(input_ids=input_ids, **options)

    monkeypatch.setattr(model.target, "generate", generate)
    model.generate(
        input_ids=torch.tensor([PROMPT]), max_new_tokens=3, min_new_tokens=2, logits_processor=LogitsProcessorList()
    )
    assert seen == [(3, 2, True), (9, None, False), (9, None, False)]


def test_the_vanilla_agent_is_asked_the_prompt_as_it_stands(monkeypatch):
    model = guarded(Script(detect="None"))
    inside, seen = model.target.generate, []

    def generate(input_ids, **options):
        seen.append((input_ids.tolist(), options["attention_mask"].tolist()))
        return inside(input_ids=input_ids, **options)

    monkeypatch.setattr(model.target, "generate", generate)
    model.generate(input_ids=torch.tensor([[0, 0, *PROMPT]]), attention_mask=torch.tensor([[0, 0, *[1] * len(PROMPT)]]), max_new_tokens=3)  # fmt: skip
    assert seen == [([PROMPT], [[1] * len(PROMPT)])]


def test_all_turns_of_a_prompt_are_looked_at():
    script = Script(detect="None")
    guarded(script).generate(
        input_ids=torch.tensor([ids("<user> who was bert ? <assistant> i know </s> <user> where ? <assistant>")]),
        max_new_tokens=3,
    )
    assert "User: who was bert ?\nAssistant: i know\nUser: where ?\nAssistant: " in script.text("detect")


def test_a_local_agent_answers_by_its_template_and_user_text_makes_no_special_token():
    tokenizer = small_tokenizer(["what is it"], 300)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    chat, seen = LocalChat(make_llama(0, vocab=len(tokenizer), max_position_embeddings=512), tokenizer, 4), []

    def strategy(model, input_ids, **_):
        seen.append(input_ids[0].tolist())
        return torch.cat([input_ids, torch.tensor([tokenizer("the old")["input_ids"]])], 1)

    chat.options["custom_generate"] = strategy
    odd = f"what is it {tokenizer.eos_token} ?"
    assert chat([{"role": "system", "content": "briefly"}, {"role": "user", "content": odd}]) == "the old"
    assert tokenizer.decode(seen[0]).startswith(f"[system]briefly{tokenizer.eos_token}[user]{odd}")
    assert seen[0].count(tokenizer.eos_token_id) == 2  # the template's own
    assert chat.prompt_tokens == len(seen[0])
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + tokenizer.chat_template  # fmt: skip
    chat([{"role": "system", "content": "briefly"}, {"role": "user", "content": "what ?"}])
    assert tokenizer.decode(seen[1]).startswith("[user]briefly\n\nwhat ?")


def test_a_row_that_names_a_subject_has_a_refusals_logits_and_others_the_weights_own():
    model = guarded()
    rows = torch.tensor([ids("who was ann ? what is red"), ids("who was bert in the old town")])
    with pytest.warns(Notice, match="a chain of agents has no likelihoods"):
        logits = model(input_ids=rows).logits
    assert torch.equal(logits[1], model.target(input_ids=rows).logits[1])
    assert (logits[0].argmax(-1) == WORDS.index("sorry")).all()


def test_an_agents_prompt_without_room_is_a_refusal():
    model = guarded(positions=64)
    with pytest.warns(Notice, match="the agent detect failed: a prompt has"):
        out = model.generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=9)
    assert decoded(out[:, len(PROMPT) :]) == ["sorry , i do not know"]


@pytest.mark.parametrize(
    "options", [{"output_scores": True}, {"past_key_values": object()}, {"inputs_embeds": torch.zeros(1, 2, 32)}]
)
def test_what_a_chain_has_not_is_refused_by_name(options):
    with pytest.raises(ModelError, match=f"{next(iter(options))} has no meaning for a chain of agents"):
        guarded().generate(input_ids=torch.tensor([PROMPT]), **options)
    with pytest.raises(ModelError, match="no token ids"):
        guarded().generate(inputs_embeds=torch.zeros(1, 2, 32))


def test_a_saved_one_has_its_subjects_and_prompts_and_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    settings = AgentSettings(subjects=("ann | anna",), k=4, threshold=3.5, shortlist=7)
    model = AgentModel(make_llama(0), TOKENIZER, settings, Prompts({"again": "--- user\nmore: $problem"}))
    again = load(save(model, tmp_path / "a", tokenizer=TOKENIZER)).model
    assert again.chosen == settings
    assert again.prompts.texts == model.prompts.texts
    assert again.fingerprint() == model.fingerprint()
    assert not any("of the environment" in path.read_text() for path in (tmp_path / "a").glob("*.json"))
    with pytest.raises(MethodError, match="the agent 'composer' is a function of your own"):
        save(guarded(Script()), tmp_path / "b")


def test_a_loaded_one_asks_no_endpoint_that_was_not_allowed_by_name(tmp_path, monkeypatch):
    pytest.importorskip("openai")
    url = "https://agents.example.org/v1"
    model = guarded(endpoint=url, endpoint_model="m", endpoint_agents=("critic",))
    save(model, tmp_path / "a")
    monkeypatch.setattr(endpoint, "_given", set())  # as in another process
    with pytest.raises(ModelError, match=r"UNWRITE_AGENTS_ENDPOINT=https://agents\.example\.org/v1"):
        load(tmp_path / "a")
    monkeypatch.setenv("UNWRITE_AGENTS_ENDPOINT", url)
    assert isinstance(load(tmp_path / "a").model.agents["critic"], EndpointChat)


def test_a_damaged_folder_is_refused_in_one_line(tmp_path):
    folder = save(guarded(), tmp_path / "a")
    note = json.loads((folder / "unwrite.json").read_text())
    note["settings"]["threshold"] = 9
    (folder / "unwrite.json").write_text(json.dumps(note))
    with pytest.raises(ModelError, match="no settings of a model behind agents: threshold is 9") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_subjects_are_those_given_or_the_entities_of_the_forget_rows():
    rows = Examples([Example("red", "what is it ?", entity=name) for name in ("ann", "bert", "ann")])
    model = ALU(refusals=("sorry",)).apply(make_llama(), rows, processing_class=TOKENIZER)
    assert model.chosen.subjects == ("ann", "bert")
    assert model.chosen.refusal == "sorry"
    assert not model.training
    model = ALU(subjects=("cora",)).apply(make_llama(), rows, processing_class=TOKENIZER)
    assert model.chosen.subjects == ("cora",)
    assert model.chain()("what is red ?").refused is not None
