"""Intervals over seeds and documents: against slow loops, in closed form, and by their coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from w2s_jax.metrics import crossed, intervals


def crossed_table(rng, seeds, documents, *, seed_sd=0.0, levels=(0.5, 0.8), draws=1000):
    """Correctness [N, 2] per seed of two models, and their sums over resampled documents."""
    easy_N = rng.normal(size=documents)
    tables = []
    for _ in range(seeds):
        scores = [
            level + easy_N + 0.6 * rng.normal(size=documents) + seed_sd * rng.normal()
            for level in levels
        ]
        tables.append(np.stack([s > 0 for s in scores], axis=1))
    ids = [np.arange(documents)] * seeds
    sums_RSK = crossed.resample_documents(ids, tables, resamples=draws)
    return tables, sums_RSK


def test_documents_are_drawn_together_and_those_of_others_do_not_count():
    rng = np.random.default_rng(0)
    ids = [np.array([3, 5, 9]), np.array([9, 3]), np.array([20])]
    columns = [rng.integers(0, 2, (i.size, 2)) for i in ids]
    sums_RSK = crossed.resample_documents(ids, columns, resamples=20_000)
    # 4 documents are drawn of 4: each is drawn once on average, with variance 1 - 1/4.
    for s, table in enumerate(columns):
        assert sums_RSK[:, s].mean(axis=0) == pytest.approx(table.sum(axis=0), abs=0.05)
    ones = crossed.resample_documents(ids, [np.ones((i.size, 1)) for i in ids], resamples=20_000)
    assert ones[:, 2].var() == pytest.approx(3 / 4, abs=0.05)
    # The documents of the second seed are among those of the first, so they are drawn as often.
    assert (ones[:, 0] >= ones[:, 1]).all() and (ones[:, 0] + ones[:, 2]).tolist() == [
        [4.0]
    ] * 20_000
    assert crossed.share_documents(ids) and not crossed.share_documents([ids[0], ids[2]])


def interval_by_loops(tables, draws, level=0.95):
    """The same, one draw at a time."""
    rng = np.random.default_rng(5)
    seeds, documents = len(tables), len(tables[0])
    difference_SN = np.array([t[:, 1].astype(float) - t[:, 0] for t in tables])
    both, over_seeds, over_documents = [], [], []
    for _ in range(draws):
        chosen_S, chosen_N = rng.integers(0, seeds, seeds), rng.integers(0, documents, documents)
        both.append(np.mean([difference_SN[s, chosen_N].mean() for s in chosen_S]))
        over_seeds.append(np.mean([difference_SN[s].mean() for s in chosen_S]))
        over_documents.append(difference_SN[:, chosen_N].mean())
    of_seeds, of_documents = np.var(over_seeds) * seeds / (seeds - 1), np.var(over_documents)
    total = of_seeds + of_documents
    df = (seeds - 1) * (total / of_seeds) ** 2
    reach = stats.t.ppf((1 + level) / 2, df) * math.sqrt(
        total / (np.var(over_seeds) + of_documents)
    )
    tail = stats.norm.cdf(-reach)
    return np.quantile(both, [tail, 1 - tail]), math.sqrt(total), df


def test_an_interval_is_that_of_drawing_seeds_and_documents_one_by_one():
    tables, sums_RSK = crossed_table(np.random.default_rng(1), 5, 200, seed_sd=0.15, draws=10_000)
    values_SK = np.array([t.mean(axis=0) for t in tables])[:, ::-1]
    found = crossed.crossed_interval(values_SK, sums_RSK[..., ::-1] / 200, crossed.mean_difference)
    (low, high), se, df = interval_by_loops(tables, 4000)
    assert found["value"] == pytest.approx(np.subtract(*values_SK.T).mean())
    assert found["se"] == pytest.approx(se, rel=0.06) and found["df"] == pytest.approx(df, rel=0.15)
    assert found["low"] == pytest.approx(low, abs=0.07 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.07 * (high - low))
    assert found["p"] == pytest.approx(2 * stats.t.sf(found["value"] / found["se"], found["df"]))


def coverage(seeds, seed_sd, experiments, documents=200):
    """Shares of experiments whose intervals hold the truth: over both, and over seeds alone."""
    rng = np.random.default_rng(7)
    spread = math.sqrt(1 + 0.6**2 + seed_sd**2)
    right = [stats.norm.cdf(level / spread) for level in (0.5, 0.8)]
    both = over_seeds = 0
    for _ in range(experiments):
        tables, sums_RSK = crossed_table(rng, seeds, documents, seed_sd=seed_sd, draws=400)
        values_SK = np.array([t.mean(axis=0) for t in tables])[:, ::-1]
        drawn = sums_RSK[..., ::-1] / documents
        for statistic, truth in (
            (crossed.mean_difference, right[1] - right[0]),
            (crossed.mean_of_first, right[1]),
        ):
            found = crossed.crossed_interval(values_SK, drawn, statistic)
            both += found["low"] <= truth <= found["high"]
        found = intervals.mean_over_seeds(values_SK[:, 0].tolist())
        over_seeds += found["low"] <= right[1] <= found["high"]
    return both / experiments / 2, over_seeds / experiments


def test_intervals_cover_the_truth_and_those_over_seeds_alone_do_not():
    both, over_seeds = coverage(5, 0.0, 50)
    assert both > 0.9 and over_seeds < 0.8


@pytest.mark.medium
@pytest.mark.parametrize("seeds,seed_sd", [(3, 0.1), (5, 0.0), (5, 0.2), (8, 0.1)])
def test_intervals_cover_the_truth_in_about_95_of_100_experiments(seeds, seed_sd):
    both, _ = coverage(seeds, seed_sd, 250)
    # Where seeds differ little the pigeonhole bootstrap is wide: it counts their noise thrice.
    assert 0.93 < both < 0.995


def test_an_interval_of_an_accuracy_is_within_0_and_1():
    for wrong in (0, 1):
        tables = [np.arange(40)[:, None] >= wrong for _ in range(3)]
        drawn = crossed.resample_documents([np.arange(40)] * 3, tables) / 40
        values_SK = np.full((3, 1), 1 - wrong / 40)
        found = crossed.crossed_interval(values_SK, drawn, crossed.mean_of_first)
        assert 0 < found["low"] <= found["value"] <= found["high"] <= 1
    low, high = intervals.wilson_interval(1.0, 40)
    assert low == pytest.approx(40 / (40 + 1.96**2), abs=1e-4) and high == pytest.approx(1)
    assert high <= 1
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert intervals.wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert intervals.wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_medians_and_ratios_are_over_what_is_defined():
    values = np.array([[0.6, 0.7, 0.8], [0.6, 0.66, 0.62], [0.6, 0.62, 0.8], [0.6, 0.62, 0.58]])
    assert crossed.median_of_pgrs(values) == pytest.approx(0.5)
    assert crossed.median_of_pgrs(values[:2]) == pytest.approx(1.75)
    assert np.isnan(crossed.median_of_pgrs(values[3:]))
    assert crossed.pgr_of_means(values) == pytest.approx(0.5)
    drawn = np.repeat(values[None], 50, axis=0)
    found = crossed.crossed_interval(
        values[3:].repeat(2, 0), drawn[:, [3, 3]], crossed.pgr_of_means
    )
    assert (found["value"], found["low"], found["defined_share"]) == (None, None, 0)
    with pytest.raises(ValueError, match="two seeds"):
        crossed.crossed_interval(values[:1], drawn[:, :1], crossed.pgr_of_means)


def test_equal_seeds_are_worth_one():
    tables, sums_RSK = crossed_table(np.random.default_rng(3), 1, 300, draws=4000)
    accuracy = tables[0][:, :1].mean()
    found = crossed.crossed_interval(
        np.full((4, 1), accuracy), sums_RSK[..., :1].repeat(4, 1) / 300, crossed.mean_of_first
    )
    assert found["se"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 300), rel=0.05)
    assert math.isinf(found["df"])
