"""Learn2PD: where exactly a row is cut, what the model then sees, and a filter's file written by hand."""

import json
import math
import struct
from dataclasses import replace

import pytest
import torch
from masks import END, VOCAB, confident, lively, prompts_of, rows_of

from unwrite.diffusion import FixedBlocks, Sampler, TopK
from unwrite.diffusion.parts.learn2pd import EoTP, Filter, LearnedSelect

ONE_BY_ONE = Sampler(gen_length=24, blocks=FixedBlocks(8), commit=TopK())
RULE = LearnedSelect(lambda confidence: torch.where(confidence >= 0.4, math.inf, -math.inf))


def test_forwards_after_the_cut_are_of_the_prompt_and_six_tokens():
    """What the model is given, and not what is counted."""
    tokens, sure = [5] * 64, [0.5 - 0.001 * place for place in range(64)]
    tokens[5], sure[5] = END, 0.99
    predictor = rows_of(torch.cat([torch.zeros(3, VOCAB), confident(tokens, sure)]))
    out = Sampler(gen_length=64, commit=TopK(), edit=EoTP())(predictor, None, [[7, 8, 9]])
    assert [list(canvas.shape) for canvas in predictor.model.seen] == [[1, 67]] + [[1, 9]] * 5
    assert out.trace.work.tolist() == [67 + 5 * 9]


def cut_at(step, row, end, mode):
    """Columns kept by the rule as it reads, and whether the filter had accepted an end token."""
    start, width = int(step.start[row]), int((step.end - step.start)[row])
    masked, proposed = step.masked[row, :width].tolist(), step.proposed[row, :width].tolist()
    shown = step.canvas[row, start : start + width].tolist()
    accepted = [one and sure >= 0.4 for one, sure in zip(masked, step.confidence[row].float().tolist(), strict=False)]
    if mode == "resolved":
        found = [start + i for i in range(width) if masked[i] and shown[i] == end]
    else:
        found = [start + i for i in range(width) if accepted[i] and proposed[i] == end]
    if found or mode == "resolved":
        return (found[0] + 1 if found else None), bool(found)
    p, best = step.wide.clean[row].softmax(-1), (0.0, None)
    for place, column in enumerate(step.wide.columns[row].tolist()):
        if step.wide.masked[row, place] and step.wide.known[row, place] and int(p[place].argmax()) == end:
            best = max(best, (float(p[place, end]), column + 1), key=lambda one: one[0])
    return best[1], False


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("mode", ["resolved", "aggressive"])
def test_a_row_is_cut_behind_the_end_token_in_columns_of_the_canvas(mode, cache):
    """Each length that is left after each forward, from the step itself; some cuts fall inside the third block."""
    edit = EoTP(mode, min_new_tokens=17, select=RULE if mode == "aggressive" else None)
    inside = 0
    for seed, end in ((seed, end) for seed in range(4) for end in range(5, 12)):
        prompts, steps = prompts_of(3, 6, seed=seed), []
        sampler = replace(ONE_BY_ONE, commit=RULE, cache=cache, edit=edit, watch=steps.append)
        sampler(replace(lively(seed), end_ids=(end,)), None, prompts)
        left = {row: len(prompt) + 24 for row, prompt in enumerate(prompts)}
        for step in steps:
            for row, place in enumerate(step.rows.tolist()):
                keep, accepted = cut_at(step, row, end, mode)
                least = len(prompts[place]) + 17
                expected = left[place] if keep is None else min(max(keep, least), left[place])
                inside += accepted and least < expected < left[place]
                left[place] = int(step.length[row])
                assert left[place] == expected
    assert inside > 0


def test_a_file_from_anywhere_decides_by_its_numbers(tmp_path):
    """Bytes as the format has them: eight for the header's length, the header, little-endian floats."""
    weights = {
        "layers.0.weight": [2.0, 1.0, -3.0, 0.5],
        "layers.0.bias": [0.25, 1.0],
        "layers.1.weight": [4.0, -1.0, 0.5, 2.0],
        "layers.1.bias": [-3.0, -0.5],
    }
    header, data = {"__metadata__": {"format": "unwrite learn2pd filter", "size": "2", "depth": "2"}}, b""
    for name, values in weights.items():
        shape = [2, 2] if len(values) == 4 else [2]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += struct.pack(f"<{len(values)}f", *values)
    text = json.dumps(header).encode()
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    found = Filter.load(tmp_path / "f.safetensors")
    # (.5, .25): 2 * .5 + .25 + .25 = 1.5 and -1.5 + .125 + 1 < 0; then 4 * 1.5 - 3 and .5 * 1.5 - .5
    assert found(torch.tensor([[0.5, 0.25], [0.0, 0.0]])).tolist() == [[3.0, 0.25], [-3.0, 1.625]]
    table = torch.cat([torch.zeros(1, VOCAB), confident([5, 6], [0.5, 0.25])])
    for accept, order in ((0.9, [0, 1]), (0.5, [0, 0])):  # sigmoid: .953 and .562
        sampler = Sampler(gen_length=2, commit=LearnedSelect(found, accept))
        assert sampler(rows_of(table), None, [[7]]).trace.order[0].tolist() == order
