"""What parallel decoding must lose: closed forms against enumeration, and the bounds' order."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from unwrite.diffusion.parallelbench import (
    Joint,
    accuracy,
    bound,
    correlation,
    lower_bound,
    optimal_bound,
    threshold_accuracy,
    total_correlation,
    written_right,
)
from unwrite.diffusion.parallelbench.theory import DETERMINED
from unwrite.errors import MethodError

EXACT = 1e-9  # the card's; sums of float64 over at most a few thousand outcomes are far closer


def shuffles(n):
    return {order: 1 / math.factorial(n) for order in itertools.permutations(range(n))}


def replacements(n):
    return {tuple("F" if place == at else place for place in range(n)): 1 / n for at in range(n)}


JOINTS = {"shuffle": shuffles, "replace_random": replacements, "copy": lambda n: {tuple(range(n)): 1.0}}


def in_steps_of(k, n):
    return [range(first, first + k) for first in range(0, n, k)]


@pytest.mark.parametrize(
    ("n", "replaced", "shuffled"), [(3, 1.1699, 2.1699), (4, 1.2451, 3.4150), (10, 1.3680, 11.4282)]
)
def test_the_correlations_are_the_papers(n, replaced, shuffled):
    assert correlation("replace_random", n) == pytest.approx(replaced, abs=5e-5)  # four decimals are given
    assert correlation("shuffle", n) == pytest.approx(shuffled, abs=5e-5)
    assert {bound(task, n, k) for task in DETERMINED for k in (1, n)} == {0}
    assert {correlation(task, n) for task in DETERMINED} == {0}


@pytest.mark.parametrize("task", JOINTS)
@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_correlations_equal_their_enumeration(task, n):
    assert total_correlation(JOINTS[task](n)) == pytest.approx(correlation(task, n), abs=EXACT)
    assert total_correlation(replacements(10)) == pytest.approx(correlation("replace_random", 10), abs=EXACT)


def test_replacing_loses_log2_e_in_the_limit_and_shuffling_without_bound():
    assert correlation("replace_random", 10**6) == pytest.approx(math.log2(math.e), abs=1e-6)
    assert correlation("shuffle", 200) > correlation("shuffle", 100) > 100


@pytest.mark.parametrize("task", JOINTS)
@pytest.mark.parametrize(("n", "k"), [(3, 1), (3, 3), (4, 2), (6, 1), (6, 2), (6, 3), (6, 6)])
def test_bounds_and_accuracies_equal_their_enumeration(task, n, k):
    joint, steps = JOINTS[task](n), in_steps_of(k, n)
    assert lower_bound(joint, steps) == pytest.approx(bound(task, n, k), abs=EXACT)
    assert written_right(joint, steps) == pytest.approx(accuracy(task, n, k), abs=EXACT)
    assert written_right(joint, steps, greedy=True) == pytest.approx(accuracy(task, n, k, greedy=True), abs=EXACT)


def test_two_shuffled_items_a_step_lose_the_double_factorials():
    def double(n):
        return math.prod(range(n, 0, -2))

    for n in (2, 4, 6, 10):
        assert bound("shuffle", n, 2) == pytest.approx(math.log2(double(n) / double(n - 1)), abs=EXACT)


@pytest.mark.parametrize(
    ("n", "k", "right"), [(3, 3, 2 / 9), (4, 2, 3 / 8), (6, 2, 0.3125), (10, 2, 0.24609375), (10, 10, 3.6288e-4)]
)
def test_shuffle_accuracies_are_the_papers(n, k, right):
    assert accuracy("shuffle", n, k) == pytest.approx(right, abs=EXACT)
    assert accuracy("shuffle", n, k, greedy=True) == accuracy("shuffle", n, k)


@pytest.mark.parametrize(
    ("n", "k", "right"),
    [(4, 1, 1.0), (4, 2, 0.65625), (4, 4, 0.421875), (10, 2, 0.8121), (10, 5, 0.5699), (10, 10, 0.3874)],
)
def test_sampled_replace_accuracies_are_the_papers(n, k, right):
    assert accuracy("replace_random", n, k) == pytest.approx(right, abs=5e-5)
    assert written_right(replacements(n), in_steps_of(k, n)) == pytest.approx(
        accuracy("replace_random", n, k), abs=EXACT
    )
    if k == n:
        assert accuracy("replace_random", n, k) == pytest.approx(((n - 1) / n) ** (n - 1), abs=EXACT)


def test_one_sampled_shot_at_replacing_tends_to_one_over_e():
    assert accuracy("replace_random", 10**6, 10**6) == pytest.approx(1 / math.e, abs=1e-6)


def test_ten_shuffled_items_by_enumeration_of_all_their_orders():
    orders = np.zeros((1, 0), dtype=np.int8)
    for item in range(10):
        orders = np.concatenate([np.insert(orders, place, item, axis=1) for place in range(item + 1)])
    joint = Joint(orders, np.full(len(orders), 1 / len(orders)))  # [3,628,800, 10]
    assert total_correlation(joint) == pytest.approx(correlation("shuffle", 10), abs=EXACT)
    for k in (2, 10):
        assert written_right(joint, in_steps_of(k, 10)) == pytest.approx(accuracy("shuffle", 10, k), abs=EXACT)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 10])
def test_shuffles_accuracy_is_two_to_the_minus_bound(n):
    for k in (k for k in range(1, n + 1) if n % k == 0):
        assert accuracy("shuffle", n, k) == pytest.approx(2 ** -bound("shuffle", n, k), abs=EXACT)


def random_joints():
    generator = np.random.default_rng(0)
    for n in (3, 4):
        for sharpness in (0.2, 1.0):
            for _ in range(4):
                weights = generator.dirichlet([sharpness] * 2**n)
                yield n, dict(zip(itertools.product((0, 1), repeat=n), weights, strict=True))


def partitions(places):
    """Every ordered partition into non-empty steps."""
    if not places:
        yield []
    for size in range(1, len(places) + 1):
        for first in itertools.combinations(places, size):
            rest = [place for place in places if place not in first]
            yield from ([first, *others] for others in partitions(rest))


def test_the_best_partition_loses_no_more_when_it_has_one_more_step():
    for n, joint in random_joints():
        best = [optimal_bound(joint, steps) for steps in range(1, n + 1)]
        assert best[0] == pytest.approx(total_correlation(joint), abs=EXACT)
        assert all(more <= fewer + EXACT for fewer, more in itertools.pairwise(best))
        assert best[-1] == pytest.approx(0, abs=EXACT)


def test_no_partition_loses_less_than_the_best_and_one_loses_just_that():
    for n, joint in random_joints():
        found = {}
        for partition in partitions(list(range(n))):
            found.setdefault(len(partition), []).append(lower_bound(joint, partition))
        for steps, losses in found.items():
            assert min(losses) == pytest.approx(optimal_bound(joint, steps), abs=EXACT)


def test_the_bound_is_the_divergence_of_what_exact_marginals_write():
    """KL(data || written) summed over outcomes, for marginals computed by filtering the outcomes."""
    for n, joint in itertools.islice(random_joints(), 6):
        partition = [(0, 2), tuple(place for place in range(n) if place not in (0, 2))]

        def given(outcome, places, joint=joint):
            return sum(p for other, p in joint.items() if all(other[place] == outcome[place] for place in places))

        divergence = 0.0
        for outcome, p in joint.items():
            q, before = 1.0, ()
            for part in partition:
                for place in part:
                    q *= given(outcome, (*before, place)) / given(outcome, before)
                before += part
            divergence += p * math.log2(p / q)
        assert lower_bound(joint, partition) == pytest.approx(divergence, abs=EXACT)


def rightly_thresholded(joint, gamma, inclusive):
    """Exact, over every tie: reveal all positions whose likeliest token passes, else one of the surest."""

    def follow(revealed, chance):
        fitting = [o for o in joint if all(o[place] == token for place, token in revealed.items())]
        if not fitting:
            return Fraction(0)
        n = len(fitting[0])
        if len(revealed) == n:
            return chance
        best = {}
        for place in set(range(n)) - set(revealed):
            counts = {}
            for outcome in fitting:
                counts[outcome[place]] = counts.get(outcome[place], 0) + 1
            most = max(counts.values())
            best[place] = (Fraction(most, len(fitting)), [token for token, count in counts.items() if count == most])
        passing = [place for place, (sure, _) in best.items() if (sure >= gamma if inclusive else sure > gamma)]
        if not passing:
            top = max(sure for sure, _ in best.values())
            passing = [min(place for place, (sure, _) in best.items() if sure == top)]
        choices = list(itertools.product(*(best[place][1] for place in passing)))
        return sum(
            (
                follow({**revealed, **dict(zip(passing, tokens, strict=True))}, chance / len(choices))
                for tokens in choices
            ),
            Fraction(0),
        )

    return float(follow({}, Fraction(1)))


@pytest.mark.parametrize("task", JOINTS)
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(
    "gamma", [Fraction(1, 5), Fraction(1, 3), Fraction(1, 2), Fraction(3, 5), Fraction(3, 4), Fraction(9, 10)]
)
def test_threshold_accuracies_equal_every_tie_followed(task, inclusive, gamma):
    for n in (2, 3, 4):
        exact = rightly_thresholded(JOINTS[task](n), gamma, inclusive)
        assert threshold_accuracy(task, n, float(gamma), inclusive) == pytest.approx(exact, abs=EXACT)


def test_at_the_boundary_the_two_conventions_differ():
    for n in (3, 6, 10):
        assert threshold_accuracy("replace_random", n, (n - 1) / n) == 1
        assert threshold_accuracy("replace_random", n, (n - 1) / n, inclusive=True) == 0
        assert threshold_accuracy("shuffle", n, 0.51) == 1
    assert threshold_accuracy("shuffle", 6, 0.5) == 1
    assert threshold_accuracy("shuffle", 6, 0.5, inclusive=True) == 0.5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: accuracy("shuffle", 6, 4), "does not divide"),
        (lambda: accuracy("shuffle", 1, 1), "at least 2"),
        (lambda: accuracy("shufle", 4, 2), "Did you mean 'shuffle'"),
        (lambda: correlation("replace_random", 0), "at least 1"),
        (lambda: total_correlation({}), "at least one"),
        (lambda: total_correlation({(0, 1): 0.5, (1,): 0.5}), "one length"),
        (lambda: total_correlation({(0, 1): 0.5, (1, 0): 0.4}), "sum to 0.9"),
        (lambda: lower_bound(shuffles(3), [(0, 1)]), "every position 0 to 2 once"),
        (lambda: lower_bound(shuffles(3), [(0, 1), (1, 2)]), "every position 0 to 2 once"),
        (lambda: optimal_bound(shuffles(3), 4), "use 1 to 3"),
        (lambda: Joint(np.array([[0, -1]]), np.array([1.0])), "Number the tokens from 0"),
        (lambda: Joint(np.array([[0], [1]]), np.array([1.0, 0.0])), "Give positive ones"),
        (lambda: total_correlation({(0, 1): math.nan, (1, 0): 0.5}), "sum to nan"),
        (lambda: optimal_bound({tuple(range(17)): 1.0}, 2), "at most 16"),
    ],
)
def test_refuses_what_has_no_meaning(call, says):
    with pytest.raises(MethodError, match=says):
        call()
