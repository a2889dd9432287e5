"""Names of points in a picture stand beside their points and not on each other."""

from itertools import combinations, product

import pytest

from unwrite.bench.labels import HIGH, LETTER, Name, placed

SIZE, RADIUS = 10, 5
CROWD = [Name("one name", 100 + 6 * i, 50 + 5 * (i % 3)) for i in range(6)]


def box(name, place):
    wide, high = LETTER * SIZE * len(name.text), HIGH * SIZE
    return (place.x - wide / 2, place.y - high / 2, place.x + wide / 2, place.y + high / 2)


def apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def boxes(names, **changes):
    return [box(name, place) for name, place in zip(names, placed(names, 400, 300, **changes), strict=True)]


def test_a_lone_name_stands_to_the_right_of_its_point_without_a_line():
    (place,) = placed([Name("npo", 100, 50)], 400, 300)
    assert (place.x > 100, place.y, place.line) == (True, 50, None)


def test_names_of_a_crowd_lie_neither_on_each_other_nor_on_a_point():
    found = boxes(CROWD)
    assert all(apart(one, other) for one, other in combinations(found, 2))
    points = [(p.x - RADIUS, p.y - RADIUS, p.x + RADIUS, p.y + RADIUS) for p in CROWD]
    assert all(apart(one, point) for one, point in product(found, points))


def test_a_name_that_stands_away_from_its_point_has_a_line_to_it():
    found = placed(CROWD, 400, 300)
    away = [
        max(abs(place.x - name.x) - LETTER * SIZE * len(name.text) / 2, abs(place.y - name.y) - HIGH * SIZE / 2)
        for name, place in zip(CROWD, found, strict=True)
    ]
    assert any(place.line for place in found)
    assert all(place.line for place, far in zip(found, away, strict=True) if far > RADIUS + SIZE)


@pytest.mark.parametrize(("x", "y"), [(398, 150), (2, 150), (200, 298)])
def test_a_name_at_the_edge_stays_in_the_picture(x, y):
    left, _, right, bottom = boxes([Name("a longer name", x, y)])[0]
    assert (left >= 0, right <= 440, bottom <= 300) == (True, True, True)


def test_a_point_without_a_name_takes_no_room_for_one():
    assert placed([Name("", 100, 50), Name("npo", 160, 50)], 400, 300)[1].line is None
