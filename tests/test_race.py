"""The race: its estimates match the textbook, and it never loses one of the best."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import repeatable

from tas_lora import UserError
from tas_lora.search import Race, RaceRules
from tas_lora.search.stratified import Strata

IMAGES = 3000
SMALL = dict(first=240, controls=10, strata=10)  # for sets of some thousand images


class World:
    """Images on which subnets differ by .02 in the mean, and by about .3 on a single image."""

    def __init__(self, seed: int = 0, images: int = IMAGES):
        self.rng = np.random.default_rng(seed)
        self.hardness = self.rng.exponential(0.4, images)
        self.trait = self.rng.normal(size=images)

    def losses(self, count: int) -> np.ndarray:
        """Of random subnets, (count, images); they differ more on hard images."""
        quality, lean = self.rng.normal(0, [[0.02], [1.0]], (2, count))[..., None]
        own = self.rng.normal(size=(count, len(self.hardness)))
        differ = 0.53 * self.hardness * (0.5 * lean * self.trait + 0.87 * own) / np.sqrt(2)
        return (self.hardness + quality + differ).astype(np.float32)


def by_the_book(strata: Strata, losses: np.ndarray, prior: int) -> tuple[float, float]:
    """Regression estimate of a mean from a stratified sample, and its standard error, by loops.

    Cochran 1977: 7.1 with several regressors, weights 5.1, variance 5.6 of the residuals. Each
    within-group variance is pooled with ``prior`` images' worth of what the known subnets say.
    """
    rows, weights = [], []
    for group, n in zip(strata.groups, strata.drawn, strict=True):
        rows += list(group[:n])
        weights += [len(group) / n] * n
    design = np.column_stack([np.ones(len(rows)), *(known[rows] for known in strata.known)])
    root = np.sqrt(weights)
    fit, *_ = np.linalg.lstsq(design * root[:, None], losses[rows] * root, rcond=None)
    images = sum(map(len, strata.groups))
    mean = (
        fit[0] * images + sum(b * x.sum() for b, x in zip(fit[1:], strata.known, strict=True))
    ) / images
    residuals, start, variance = losses[rows] - design @ fit, 0, 0.0
    mean += np.dot(weights, residuals) / images
    pooled = sum(len(g) * s**2 for g, s in zip(strata.groups, strata.spread, strict=True)) / images
    for group, n, spread in zip(strata.groups, strata.drawn, strata.spread, strict=True):
        part, start = residuals[start : start + n], start + n
        squares = sum((part - part.mean()) ** 2) * len(rows) / (len(rows) - len(strata.known))
        expected = residuals.var() * spread**2 / pooled
        within = (squares + prior * expected) / (n - 1 + prior)
        variance += (len(group) / images) ** 2 * (1 - n / len(group)) * within / n
    return mean, np.sqrt(variance)


def drawn_strata(known, total: int, count: int = 10, seed: int = 0) -> Strata:
    strata = Strata(np.asarray(known, float), count, np.random.default_rng(seed))
    strata.draw(total)
    return strata


@pytest.mark.parametrize('prior', [0, 10])
@pytest.mark.parametrize('known', [1, 5, 20])
def test_estimates_are_those_of_the_book(monkeypatch, known, prior):
    monkeypatch.setattr(Strata, 'RIDGE', 1e-12)
    monkeypatch.setattr(Strata, 'PRIOR', prior)
    world = World(known)
    strata, losses = drawn_strata(world.losses(known), 300), world.losses(6)
    expected = np.transpose([by_the_book(strata, each, prior) for each in losses.astype(float)])
    np.testing.assert_allclose(strata.estimate(losses), expected, rtol=1e-6)


def test_the_ridge_changes_next_to_nothing():
    world = World()
    strata, losses = drawn_strata(world.losses(10), 300), world.losses(6)
    means, errors = strata.estimate(losses)
    book = np.array([by_the_book(strata, each, Strata.PRIOR) for each in losses.astype(float)])
    assert np.abs(means - book[:, 0]).max() < 0.05 * errors.min()
    np.testing.assert_allclose(errors, book[:, 1], rtol=0.01)


@pytest.mark.parametrize(('known', 'total'), [(1, 400), (3, 300), (10, 200), (10, 600), (20, 400)])
def test_estimates_are_unbiased_and_their_errors_true(known, total):
    world, draws = World(known), 250
    known, losses = world.losses(known), world.losses(6)
    truth = losses.mean(1, dtype=float)
    found = [drawn_strata(known, total, seed=seed).estimate(losses) for seed in range(draws)]
    off = np.array([means - truth for means, _ in found])
    z = off / np.array([errors for _, errors in found])
    assert np.abs(off.mean(0) / (off.std(0) / np.sqrt(draws))).max() < 4
    assert 0.75 < z.std() < 1.1  # of 1,500; pooling with the known subnets errs on the safe side
    assert np.abs(z).max() < 5


def test_known_subnets_and_groups_tell_more_than_a_plain_sample():
    world = World()
    known, losses, draws = world.losses(10), world.losses(6), 60
    truth, rng = losses.mean(1, dtype=float), np.random.default_rng(0)
    found = [drawn_strata(known, 300, seed=seed).estimate(losses)[0] for seed in range(draws)]
    plain = [losses[:, rng.choice(IMAGES, 300, False)].mean(1) for _ in range(draws)]
    assert np.std(found - truth) < 0.4 * np.std(plain - truth)


@given(
    images=st.integers(1, 400),
    known=st.integers(1, 5),
    count=st.integers(1, 30),
    totals=st.lists(st.integers(1, 400), max_size=4),
    alike=st.booleans(),
    seed=st.integers(0, 99),
)
@repeatable
def test_draws_add_up_and_never_repeat(images, known, count, totals, alike, seed):
    rng = np.random.default_rng(seed)
    known = np.repeat(rng.exponential(size=(1, images)), known, 0)
    known += 0 if alike else rng.normal(size=known.shape) * known[0]
    strata, seen = Strata(known, count, rng), np.empty(0, int)
    least = np.minimum(strata.sizes, Strata.LEAST)
    assert sorted(np.concatenate(strata.groups)) == list(range(images))
    for total in [*sorted(t for t in totals if t < images), images]:
        seen = np.concatenate([seen, strata.draw(total)])
        assert len(seen) == len(set(seen)) == strata.drawn.sum()
        assert abs(len(seen) - max(total, least.sum())) <= 1
        assert (least <= strata.drawn).all()
        assert (strata.drawn <= strata.sizes).all()
    assert len(seen) == images
    losses = rng.normal(size=(3, images))
    means, errors = strata.estimate(losses)
    np.testing.assert_allclose(means, losses.mean(1), atol=1e-9)
    assert not errors.any()


def test_more_is_drawn_where_known_subnets_differ_more():
    rng = np.random.default_rng(0)
    hardness = np.repeat([1.0, 10.0], 1000)
    known = hardness + rng.normal(size=(8, 2000)) * np.repeat([0.1, 0.3], 1000)
    strata = drawn_strata(known, 400, count=4)
    share = strata.drawn / strata.sizes
    density = strata.spread / (strata.spread @ strata.sizes / 2000)
    np.testing.assert_allclose(share, density * 400 / 2000, rtol=0.02)
    assert share[-1] > 2 * share[0]


def flat(shape):
    return np.full(shape, 0.7)


@pytest.mark.parametrize(
    'known',
    [
        World(1).losses(1),
        np.repeat(World(1).losses(1), 6, 0),
        flat((4, IMAGES)),
        flat((1, IMAGES)),
        np.zeros((2, IMAGES)),
    ],
    ids=['one', 'alike', 'constant', 'one constant', 'zero'],
)
@pytest.mark.filterwarnings('error')
def test_known_subnets_that_say_little(known):
    losses, z = World(2).losses(5), []
    for seed in range(100):
        strata = drawn_strata(known, 300, seed=seed)
        assert abs(strata.drawn.sum() - 300) <= 1
        means, errors = strata.estimate(losses)
        z.append((means - losses.mean(1, dtype=float)) / errors)
    assert 0.85 < np.std(z) < 1.15  # of 500


@pytest.mark.filterwarnings('error')
def test_candidates_with_constant_losses():
    strata = drawn_strata(World().losses(5), 300)
    means, errors = strata.estimate(flat((2, IMAGES)))
    np.testing.assert_allclose(means, 0.7, atol=1e-6)
    assert (errors < 1e-6).all()


class Asks:
    """Runs a race on known losses; remembers what it asked for."""

    def __init__(self, race: Race, losses: np.ndarray, gives=lambda turn, candidate, part: part):
        self.race, self.asks, self.decided = race, [], []
        self.times = np.zeros(losses.shape, int)  # that each was asked for each image
        while (asked := race.ask()) is not None:
            candidates, images = asked
            self.asks.append((list(candidates), images))
            self.times[np.ix_(candidates, images)] += 1
            given = {c: gives(len(self.asks), c, losses[c, images]) for c in candidates}
            self.decided.append(race.tell(given))

    @property
    def share(self) -> float:
        return self.race.seen.sum() / self.times.size


def new_race(losses, keep=10, known=None, bar=(), seed=0, **rules) -> Race:
    known = np.empty((0, losses.shape[1])) if known is None else known
    rules = RaceRules(**SMALL | rules)
    rng = np.random.default_rng(seed)
    return Race(len(losses), losses.shape[1], keep, known, bar, rules, rng)


def winners(race: Race, keep: int) -> set[int]:
    """The best of those that are known for sure."""
    whole = [c for c in range(len(race.means)) if race.whole(c) is not None]
    return set(sorted(whole, key=lambda c: race.means[c])[:keep])


def best_of(losses: np.ndarray, keep: int) -> set[int]:
    """By evaluating all of all."""
    return set(np.argsort(losses.mean(1, dtype=float))[:keep])


@pytest.mark.parametrize('keep', [1, 10])
def test_the_best_are_those_of_evaluating_all(keep):
    shares = []
    for seed in range(60):
        losses = World(seed).losses(50)
        run = Asks(new_race(losses, keep, seed=seed), losses)
        assert winners(run.race, keep) == best_of(losses, keep)
        shares.append(run.share)
    assert np.mean(shares) < {1: 0.45, 10: 0.64}[keep]


def test_the_larger_the_set_the_smaller_the_share():
    shares = []
    for images in (600, 2000, 8000):
        runs = []
        for seed in range(5):
            losses = World(seed, images).losses(40)
            runs.append(Asks(new_race(losses, 5, seed=seed), losses).share)
        shares.append(np.mean(runs))
    assert shares[0] > shares[1] > shares[2]


def test_each_image_is_seen_once_and_by_those_that_finish_all_are():
    losses = World().losses(30)
    run = Asks(new_race(losses, 5), losses)
    race = run.race
    assert run.times.max() == 1
    assert (run.times.sum(1) == race.seen).all()
    finished = race.seen == IMAGES
    assert 5 <= finished.sum() < 30
    np.testing.assert_array_equal(race.means[finished], losses[finished].mean(1, dtype=float))
    assert (race.errors[finished] == 0).all()
    assert (race.errors[~finished] > 0).all()
    assert all((race.whole(c) is not None) == finished[c] for c in range(30))
    assert sorted(sum(run.decided, [])) == list(range(30))


def test_slices_are_of_the_sizes_that_the_rules_say():
    losses = World().losses(30)
    run = Asks(new_race(losses, 3), losses)
    _, *slices = run.asks
    seen = np.cumsum([len(images) for _, images in slices])
    expected = [240, 360, 540, 810, 1215, 1822, 2733, 3000][: len(seen)]
    assert np.abs(seen - expected).max() <= 1
    assert RaceRules(**SMALL).sizes(2800)[-2:] == [1822, 2800]  # not 2733, for the sake of 67


@pytest.mark.parametrize('images', [240, 100, 7])
def test_a_set_that_is_not_larger_than_the_first_slice_is_evaluated_whole(images):
    losses = World(0, images).losses(12)
    run = Asks(new_race(losses, 3), losses)
    [(candidates, asked)] = run.asks
    assert candidates == list(range(12))
    assert sorted(asked) == list(range(images))
    assert winners(run.race, 12) == set(range(12))


@given(st.integers(18, 3000), st.floats(1.05, 3), st.integers(1, 5000))
@repeatable
def test_sizes_grow_to_all(first, growth, images):
    sizes = RaceRules(first=first, growth=growth, strata=1, controls=1).sizes(images)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == images


@pytest.mark.parametrize('strata', [1, 8])
def test_no_slice_is_empty(strata):
    losses = World(0, 600).losses(12)
    first = 2 * (8 * strata + 1)
    rules = dict(first=first, growth=1.05, strata=strata, controls=1)
    run = Asks(new_race(losses, 2, **rules), losses)
    assert min(len(images) for _, images in run.asks) > 0
    assert winners(run.race, 2) == best_of(losses, 2)


def test_a_dropped_candidate_is_above_the_bar(monkeypatch):
    monkeypatch.setattr(Strata, 'RIDGE', 1e-12)
    losses, keep = World(3).losses(30), 5
    race, dropped = new_race(losses, keep), 0
    candidates, _ = race.ask()
    race.tell({c: losses[c] for c in candidates})
    places = losses[:keep].mean(1, dtype=float)
    while True:
        candidates, images = race.ask()
        decided = race.tell({c: losses[c, images] for c in candidates})
        if race.strata.drawn.sum() == IMAGES:
            break
        rows = losses[candidates].astype(float)
        means, errors = np.transpose([by_the_book(race.strata, row, Strata.PRIOR) for row in rows])
        bar = np.sort([*places, *(means + 3 * errors)])[keep - 1]
        assert decided == [
            c for c, low in zip(candidates, means - 3 * errors, strict=True) if low > bar
        ]
        dropped += len(decided)
    assert dropped > 10


def test_earlier_generations_set_the_bar_and_predict():
    world = World(5)
    known, losses = world.losses(40), world.losses(40)
    known = known[np.argsort(known.mean(1))]
    run = Asks(new_race(losses, 10, known[:10], known[:10].mean(1, dtype=float)), losses)
    assert len(run.asks[0][0]) == 40  # nobody need go first
    best = best_of(np.concatenate([known, losses]), 10)
    assert {40 + c for c in winners(run.race, 10)} >= {c for c in best if c >= 40}
    assert run.share < Asks(new_race(losses, 10), losses).share


def test_a_bar_that_nobody_reaches():
    world = World(5)
    known, losses = world.losses(10), world.losses(20) + 1
    run = Asks(new_race(losses, 10, known, known.mean(1)), losses)
    assert len(run.asks) == 1
    assert winners(run.race, 10) == set()


def test_a_bar_without_losses_that_predict():
    losses = World().losses(20)
    run = Asks(new_race(losses, 2, bar=[9.0, 9.0]), losses)
    assert run.asks[0][0] == [0]
    assert winners(run.race, 2) == best_of(losses, 2)


def test_no_more_known_subnets_predict_than_the_rules_say(monkeypatch):
    used = []
    estimate = Strata.estimate
    monkeypatch.setattr(
        Strata, 'estimate', lambda s, x: used.append(len(s.known)) or estimate(s, x)
    )
    world = World()
    losses = world.losses(30)
    Asks(new_race(losses, 15, world.losses(3), controls=10), losses)
    assert set(used) == {10}


@pytest.mark.parametrize('candidates', [1, 4, 10])
def test_no_more_candidates_than_places_are_all_evaluated(candidates):
    losses = World().losses(candidates)
    run = Asks(new_race(losses, 10), losses)
    assert len(run.asks) == 1
    assert (run.race.seen == IMAGES).all()


def test_no_candidates():
    race = new_race(np.empty((0, IMAGES)))
    assert race.ask() is None


def damage(kind, part):
    """Losses with a NaN or an infinity in one place, or none at all."""
    if kind is None:
        return None
    part = part.copy()
    part[len(part) // 2] = kind
    return part


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', [None, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('turn', [1, 2, 4])
def test_candidates_that_fail_never_win_and_others_take_their_place(kind, turn):
    for seed in range(5):
        losses, failed = World(seed).losses(40), set()
        losses[::2] -= 0.05  # the better half fails, at its first evaluation or later

        def gives(now, candidate, part, failed=failed):
            if candidate % 2 or now < turn:
                return part
            failed.add(candidate)
            return damage(kind, part)

        run = Asks(new_race(losses, 6, seed=seed), losses, gives)
        race, is_failed = run.race, np.isin(np.arange(40), list(failed))
        assert failed
        assert (np.isnan(race.means) == is_failed).all()
        assert not race.errors[is_failed].any()
        assert np.isfinite(race.bar).all()
        assert not winners(race, 6) & failed
        if turn <= 2:  # later, others have been dropped that were worse
            assert winners(race, 6) == best_of(np.where(is_failed[:, None], 9, losses), 6)
        assert sorted(sum(run.decided, [])) == list(range(40))


def test_losses_that_were_not_had_are_not_counted_as_seen():
    losses = World().losses(4)
    run = Asks(new_race(losses, 2), losses, lambda now, c, part: None if c == 1 else part)
    assert run.race.seen[1] == 0
    assert run.asks[1][0] == [2]  # in the place of the second


def test_all_candidates_fail():
    losses = World().losses(5)
    run = Asks(new_race(losses, 2), losses, lambda now, candidate, part: None)
    assert [candidates for candidates, _ in run.asks] == [[0, 1], [2, 3], [4]]
    assert np.isnan(run.race.means).all()
    assert run.race.bar == []


def test_same_draws_same_asks():
    losses = World().losses(20)
    runs = [Asks(new_race(losses, 3, seed=seed), losses).asks for seed in (1, 1, 2)]
    pairs = zip(runs[0], runs[1], strict=True)
    assert all(a[0] == b[0] and (a[1] == b[1]).all() for a, b in pairs)
    assert (runs[0][1][1] != runs[2][1][1]).any()


def test_asking_again_gives_the_same_slice():
    losses = World().losses(20)
    race = new_race(losses, 3)
    for _ in range(3):
        asked = race.ask()
        assert race.ask() is asked
        race.tell({c: losses[c, asked[1]] for c in asked[0]})


@pytest.mark.parametrize(
    ('rules', 'message'),
    [
        (dict(first=0), '^first must be a positive integer, got 0'),
        (dict(first=500.0), '^first must be a positive integer, got 500.0'),
        (dict(first=359), '^first is 359: .* 20 strata and 20 controls.* at least 360'),
        (dict(growth=1.0), '^growth must be at least 1.05, got 1.0'),
        (dict(growth='2'), "^growth must be a positive number, got '2'; at most 100"),
        (dict(growth=float('nan')), '^growth must be a positive number, got nan'),
        (dict(z=0), '^z must be a positive number, got 0; at most 100'),
        (dict(z=True), '^z must be a positive number, got True'),
        (dict(controls=0), '^controls must be a positive integer, got 0; at most 200'),
        (dict(controls=201), '^controls must be a positive integer, got 201'),
        (dict(strata=0), '^strata must be a positive integer, got 0; at most 100'),
        (dict(strata=101, first=10000), '^strata must be .*, got 101; at most 100'),
    ],
)
def test_rules_that_make_no_sense(rules, message):
    with pytest.raises(UserError, match=message):
        RaceRules(**rules)


def test_the_least_first_slice_is_taken():
    assert RaceRules(first=360).sizes(360) == [360]
