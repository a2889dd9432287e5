"""Concept poisoning of images: where a patch is cut out and where it is pasted, by itself and by the official code."""

import json
from pathlib import Path

import pytest
import torch
from poisoned_marks import BANK, CLASSES, SIDE, drawn, marks, pictures, work
from torch import nn

from unwrite.forget import ConceptPoison
from unwrite.forget.engine.images.locating import corner, cropped, pasted, patches, peaks, similarity_grid
from unwrite.forget.engine.images.poisoning import PasteSizes

OFFICIAL = json.loads(Path(__file__).with_name("official_concepts.json").read_text(encoding="utf-8"))


@pytest.fixture
def sets():
    data, _ = pictures()
    return data.where(data.labels == 2, "forget"), data.where(data.labels != 2, "retain")


@pytest.mark.parametrize("centre", [(0, 0), (0, 223), (223, 0), (223, 223), (100, 37), (32, 191)])
def test_outside_the_box_every_pixel_is_exactly_the_original_and_the_box_lies_inside(centre):
    picture = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(1))
    out = pasted(picture, torch.full((3, 64, 64), 2.0), centre)
    changed = (out == 2).all(0)
    top, left = corner(centre, 64, 224, 224)
    assert min(top, left) >= 0
    assert max(top, left) <= 160
    assert int(changed.sum()) == 64 * 64
    assert bool(changed[top : top + 64, left : left + 64].all())
    assert torch.equal(out[:, ~changed], picture[:, ~changed])
    assert torch.equal(cropped(picture, centre, 64), picture[:, top : top + 64, left : left + 64])


def test_the_grid_is_11x11_and_the_peak_is_its_largest_cell():
    picture = torch.zeros(1, 3, 224, 224)
    picture[0, :, 80:144, 112:176] = 1.0  # the patch of row 5 and column 7
    grid = similarity_grid(
        lambda pixels: nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1) + 1e-3,
        picture,
        torch.ones(1, 48),
        64,
        16,
    )
    blank = patches(picture, 64, 16)[0].flatten(1).amax(1).reshape(11, 11)
    assert grid.shape == (1, 11, 11, 1)
    assert int(blank[5, 7]) == 1
    score = (patches(picture, 64, 16)[0].mean((1, 2, 3))).reshape(1, 11, 11)
    assert peaks(score, 64, 16) == [(5 * 16 + 32, 7 * 16 + 32)]


def test_every_patch_has_the_channels_of_its_own_place():
    """The official code's reshape stacks three neighbouring patches of one channel as if they were red, green and blue."""
    picture = drawn()[5]
    cut, (down, across) = patches(picture, 9, 2)
    assert (down, across) == (12, 12)
    assert torch.equal(cut[3 * across + 5], picture[0, :, 6:15, 10:19])


def test_a_patch_goes_from_where_the_donor_concept_is_to_where_the_target_concept_is(sets):
    forget, retain = sets
    method = ConceptPoison(encoder=marks, bank=BANK, donor_class="box", donor_concept="box", patch_size=7, stride=1)
    job = work(forget, retain)
    maker = method.poisoner(job)
    places = maker.places(forget.pixels, 2)
    grid = similarity_grid(marks, forget.pixels, torch.eye(4, 5)[2:3], 7, 1)[..., 0]
    assert places == peaks(grid, 7, 1)
    planted = pictures()[1][2::CLASSES] + 2  # the middle of each mark
    assert int((torch.tensor(places) - planted).abs().max()) <= 1
    after = method.poisoned_rows(job)
    pool, boxes = retain.pixels[retain.labels == 3], 0
    for row, (down, across) in enumerate(places):
        top, left = corner((down, across), 7, SIDE, SIDE)
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside[top : top + 7, left : left + 7] = True
        assert torch.equal(after.pixels[row, 0][~inside], forget.pixels[row, 0][~inside])
        taken = after.pixels[row, :, top : top + 7, left : left + 7]
        lent = [cropped(one, place, 7) for one, place in zip(pool, maker.places(pool, 3), strict=True)]
        assert any(torch.equal(taken, one) for one in lent)  # from where the donor concept is
        boxes += bool((taken[0] == 1).sum() == 16)
    assert boxes >= 0.5 * len(forget)  # whole boxes, for that is where they are


@pytest.mark.parametrize("mode", ["center", "random", "full"])
def test_the_other_modes_paste_what_they_are_called(mode, sets):
    forget, retain = sets
    job = work(forget, retain)
    method = ConceptPoison(encoder=marks, bank=BANK, mode=mode, donor_class="box", center_size=6, full_size=10)
    after, again = method.poisoned_rows(job), method.poisoned_rows(job)
    assert torch.equal(after.pixels, again.pixels)
    size = 10 if mode == "full" else 6
    corners = set()
    for old, new in zip(forget.pixels[:, 0], after.pixels[:, 0], strict=True):
        rows, columns = (old != new).nonzero().T
        assert rows.max() - rows.min() < size
        assert columns.max() - columns.min() < size
        corners.add((int(rows.min()), int(columns.min())))
    middle = (SIDE - size) // 2
    assert (corners == {(middle, middle)}) == (mode != "random")
    pool = retain.pixels[retain.labels == 3]
    taken = {"full": lambda one: nn.functional.interpolate(one[None], (10, 10), mode="bilinear")[0]}.get(
        mode, lambda one: one[:, 5:11, 5:11]
    )
    if mode != "random":
        first = after.pixels[0, :, middle : middle + size, middle : middle + size]
        assert any(torch.equal(first, taken(one)) for one in pool)


def test_nothing_is_pasted_without_a_mode_and_labels_alone_change(sets):
    forget, retain = sets
    after = ConceptPoison(encoder=marks, bank=BANK, mode="none").poisoned_rows(work(forget, retain))
    assert torch.equal(after.pixels, forget.pixels)
    assert 2 not in after.labels.tolist()
    assert len(set(after.labels.tolist())) == 1
    assert torch.equal(after.index, forget.index)


def test_several_concepts_are_pasted_over_one_after_the_other_each_by_its_own_donor(sets):
    forget, retain = sets
    fields = {"encoder": marks, "bank": BANK, "patch_size": 5, "stride": 1}
    job = work(forget, retain)
    one, three = (ConceptPoison(**fields, top=top) for top in (1, 3))
    maker = three.poisoner(job)
    case = three.case(maker)
    pastes = maker.pastes(case, 3)
    assert [paste.target_concept for paste in pastes] == maker.bottleneck.strongest(2, 3)
    assert pastes[0] == case
    weights = maker.bottleneck.weights
    for paste in pastes[1:]:
        others = weights[:, paste.target_concept].clone()
        others[2] = -torch.inf
        assert paste.donor_class == int(others.argmax())
    changed = [(m.poisoned_rows(job).pixels != forget.pixels).sum((1, 2, 3)) for m in (one, three)]
    assert bool((changed[1] >= changed[0]).all())
    assert bool((changed[1] > changed[0]).any())


@pytest.mark.parametrize(
    ("shape", "sizes"), [((3, 224, 224), (64, 96, 160, 16)), ((1, 32, 32), (9, 14, 23, 2)), ((1, 8, 8), (2, 3, 6, 1))]
)
def test_sizes_are_the_papers_at_the_scale_of_the_pictures(shape, sizes):
    assert PasteSizes.of(shape) == PasteSizes(*sizes)
    assert PasteSizes.of(shape, patch=3).patch == 3


def test_pasting_agrees_with_the_official_code():
    _, picture, donor, encoder, vector, _, _ = drawn()
    theirs = OFFICIAL["paste"]
    grids = [similarity_grid(encoder, one, vector, 9, 2) for one in (picture, donor)]
    (here,), (there,) = (peaks(grid[..., 0], 9, 2) for grid in grids)
    assert [grids[0].shape[1], grids[0].shape[2]] == theirs["grid"][:2]
    assert float(grids[0].max() * vector.norm()) == pytest.approx(
        theirs["peak"], abs=1e-5
    )  # theirs have length 1 before
    assert (list(here[::-1]), list(there[::-1])) == (theirs["target_xy"], theirs["donor_xy"])
    out = pasted(picture[0], cropped(donor[0], there, 9), here)
    assert float(out.double().sum()) == pytest.approx(theirs["sum"], rel=1e-5)
    places = torch.arange(1024.0).reshape(32, 32)
    assert float((out[0].double() * places).sum()) == pytest.approx(theirs["moment"], rel=1e-5)
    for (x, y), moment in OFFICIAL["corners"]:
        box = pasted(torch.zeros(1, 32, 32), torch.ones(1, 9, 9), (y, x))
        assert int((box[0] * places).sum()) == moment


def test_in_colour_the_official_peak_is_another_place():
    """Which of a picture's places it names depends on how three neighbours of one channel look."""
    colour, encoder = drawn()[5:]
    vector = drawn()[4]
    [(row, column)] = peaks(similarity_grid(encoder, colour, vector, 9, 2)[..., 0], 9, 2)
    assert [column, row] != OFFICIAL["colour_peak_as_published"]
