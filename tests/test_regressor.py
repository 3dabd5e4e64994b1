"""The latency regressor: laws it must keep on devices whose truth is known because the test made them."""

import subprocess
import sys

import numpy as np
import pytest

from dna_deploy.errors import RequestError
from dna_deploy.regressor import Items, choose, fit


def space(count=300, seed=0):
    """Networks of five layers with three options each, their MACs, and what each layer costs on four devices."""
    random = np.random.default_rng(seed)
    chosen = random.integers(0, 3, (count, 5))
    one_hot = np.concatenate([chosen == option for option in range(3)], 1).astype(float)
    macs = 1e6 * (one_hot @ random.uniform(1, 4, 15))
    devices = 1 + one_hot @ random.uniform(0.2, 2, (15, 4))  # 1 ms of overhead and a sum of layers
    return one_hot, macs[:, None], devices


def relative_error(predicted, truth):
    return np.abs(predicted / truth - 1)


def test_a_device_that_is_another_times_a_constant_is_recovered():
    features, costs, devices = space()
    items = Items(features, devices[:, :3], costs)
    truth = 2.5 * devices[:, 1]
    rows = choose(items, 12)
    fitted = fit(items, rows, truth[rows])
    assert relative_error(fitted.predict().mean_ms, truth).mean() < 0.005
    assert fitted.weights["costs"] < 0.05


def test_one_of_many_unlike_devices_is_found_from_a_few_measurements():
    random = np.random.default_rng(4)
    features, costs, _ = space()
    devices = np.exp(random.normal(0, 0.3, (len(features), 20)))  # nothing in common, so no mean of them helps
    truth = 1.7 * devices[:, 6] * np.exp(random.normal(0, 0.01, len(features)))
    rows = np.arange(10)
    fitted = fit(Items(features, devices, costs), rows, truth[rows])
    assert relative_error(fitted.predict().mean_ms, truth).mean() < 0.02
    assert fitted.weights["alike"] > 0.9


def test_a_sum_of_ops_is_recovered_without_sources():
    features, costs, devices = space()
    items = Items(features, None, costs)
    rows = choose(items, 40)
    predicted = fit(items, rows, devices[rows, 3]).predict().mean_ms
    assert relative_error(predicted, devices[:, 3]).mean() < 0.01


def test_sources_that_know_nothing_do_no_harm():
    _, costs, _ = space()
    random = np.random.default_rng(3)
    misleading = np.exp(random.normal(0, 0.5, (len(costs), 3)))
    truth = 0.5 + 2e-6 * costs[:, 0] * np.exp(random.normal(0, 0.02, len(costs)))
    items = Items(np.zeros((len(costs), 1)), misleading, costs)
    rows = choose(items, 20)
    error = relative_error(fit(items, rows, truth[rows]).predict().mean_ms, truth).mean()
    line = np.polynomial.Polynomial.fit(costs[rows, 0], truth[rows], 1)
    assert error < 1.5 * relative_error(line(costs[:, 0]), truth).mean() + 0.005


def test_the_upper_bound_holds_about_as_often_as_it_says():
    features, costs, devices = space(count=400)
    items = Items(features, devices[:, :3], costs)
    covered = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        truth = devices[:, 3] * np.exp(random.normal(0, 0.05, len(devices)))
        rows = random.permutation(len(devices))[:25]
        prediction = fit(items, rows, truth[rows]).predict(0.95)
        rest = np.setdiff1d(np.arange(len(devices)), rows)
        covered.append((truth <= prediction.high_ms)[rest].mean())
        assert np.all((prediction.low_ms < prediction.mean_ms) & (prediction.mean_ms < prediction.high_ms))
    assert 0.90 <= np.mean(covered) <= 0.99


def test_more_confidence_is_a_wider_interval():
    features, costs, devices = space()
    items = Items(features, devices[:, :3], costs)
    fitted = fit(items, np.arange(20), devices[:20, 3])
    assert np.all(fitted.predict(0.8).high_ms < fitted.predict(0.99).high_ms)
    with pytest.raises(RequestError, match=r"confidence 1.0"):
        fitted.predict(1.0)


def test_choosing_is_deterministic_and_stays_within_what_may_be_measured():
    features, costs, devices = space()
    allowed = np.arange(0, 300, 3)
    first, second = (choose(Items(features, devices, costs), 15, allowed) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert len(set(first.tolist())) == 15
    assert set(first.tolist()) <= set(allowed.tolist())
    with pytest.raises(RequestError, match="301 items asked for"):
        choose(Items(features, devices, costs), 301)


def test_chosen_measurements_teach_more_than_the_first_ones():
    random = np.random.default_rng(0)
    groups = np.repeat(np.eye(6), [250, 20, 10, 10, 5, 5], 0)  # most items alike, as in a table sorted by kind
    truth = np.exp(groups @ np.array([0, 1, -1, 2, -2, 0.5])) * np.exp(random.normal(0, 0.01, 300))
    items = Items(groups, None, None)
    chosen = fit(items, choose(items, 12), truth[choose(items, 12)]).predict().mean_ms
    first = fit(items, np.arange(12), truth[:12]).predict().mean_ms
    assert relative_error(chosen, truth).mean() < relative_error(first, truth).mean()


@pytest.mark.parametrize("sources", [None, lambda size: np.exp(np.c_[size, 2 * size])], ids=["no source", "two sources"])
def test_what_is_measured_leaves_no_wide_gap(sources):
    """The ends alone would do for a line, but no device promises to be one."""
    size = np.linspace(0, 1, 200)
    items = Items(size[:, None], sources and sources(size))
    measured = np.sort(size[choose(items, 8)])
    assert np.diff(np.r_[0, measured, 1]).max() < 0.25


def test_an_op_kind_that_was_never_measured_is_marked():
    features = np.c_[np.repeat(np.eye(2), 10, 0), np.tile(np.arange(10.0), 2)]
    prediction = fit(Items(features), np.arange(10), 1 + features[:10, 2]).predict()
    assert not prediction.extrapolated[:10].any()
    assert prediction.extrapolated[10:].all()
    assert np.all(prediction.mean_ms > 0)  # unknown is never zero


def test_gaps_in_a_source_are_filled_from_the_others():
    features, costs, devices = space()
    with_gaps = devices[:, :3].copy()
    with_gaps[100:200, 2] = np.nan
    items = Items(features, with_gaps, costs)
    rows = np.arange(0, 300, 15)
    predicted = fit(items, rows, devices[rows, 2]).predict().mean_ms
    assert relative_error(predicted, devices[:, 2]).mean() < 0.03


def test_the_noise_of_other_devices_is_not_taken_over():
    features, costs, devices = space()
    random = np.random.default_rng(5)
    noisy = devices * np.exp(random.normal(0, 0.1, devices.shape))
    truth = 2 * devices[:, 1]
    rows = np.arange(20)
    error = relative_error(fit(Items(features, noisy, costs), rows, truth[rows]).predict().mean_ms, truth).mean()
    assert error < 0.5 * relative_error(noisy[:, 1], devices[:, 1]).mean()


def test_far_outside_what_was_measured_it_is_still_a_number():
    sizes = np.geomspace(1, 1e9, 60)
    prediction = fit(Items(np.log(sizes)[:, None], None, sizes[:, None]), np.arange(10), 1e-3 * np.arange(1, 11)).predict(0.999)
    assert prediction.extrapolated[-1] and np.isfinite(prediction.high_ms).all() and (prediction.low_ms > 0).all()


def test_one_throttled_reading_does_not_bend_the_fit():
    features, costs, devices = space()
    items = Items(features, devices[:, :3], costs)
    rows = choose(items, 20)
    readings = devices[rows, 1].copy()
    readings[4] *= 2
    assert np.median(relative_error(fit(items, rows, readings).predict().mean_ms, devices[:, 1])) < 0.05


@pytest.mark.parametrize("readings", [np.full(20, 3.0), np.geomspace(1e-3, 1e3, 20)], ids=["all equal", "six decades"])
def test_readings_that_fit_no_source_still_get_an_answer(readings):
    features, costs, devices = space()
    prediction = fit(Items(features, devices, costs), np.arange(20), readings).predict()
    assert np.isfinite(prediction.high_ms).all()
    assert (prediction.low_ms > 0).all()


@pytest.mark.parametrize("wrong", [np.nan, -1.0, 0.0, np.inf])
def test_a_reading_that_cannot_be_is_refused_and_named(wrong):
    features, costs, devices = space()
    readings = devices[:10, 0].copy()
    readings[7] = wrong
    with pytest.raises(RequestError, match="latency_ms: row 7"):
        fit(Items(features, None, costs), np.arange(10), readings)


@pytest.mark.parametrize(
    ("name", "wrong"), [("features", np.nan), ("costs", 0.0), ("costs", np.nan), ("sources_ms", -2.0), ("sources_ms", np.inf)]
)
def test_wrong_items_are_refused_and_named(name, wrong):
    features, costs, devices = space()
    parts = {"features": features, "costs": costs, "sources_ms": devices}
    parts[name] = parts[name].copy()
    parts[name][5, 0] = wrong
    with pytest.raises(RequestError, match=f"{name}: row 5, column 0"):
        Items(**parts)


def test_rows_that_do_not_match_are_refused():
    features, costs, _ = space()
    items = Items(features, None, costs)
    with pytest.raises(RequestError, match="at least 3"):
        fit(items, [0, 1], [1.0, 2.0])
    with pytest.raises(RequestError, match=r"indices 0\.\.299"):
        fit(items, [0, 1, 300], [1.0, 2.0, 3.0])
    with pytest.raises(RequestError, match="one row an item"):
        Items(features, None, costs[:10])


def test_importing_it_loads_neither_scipy_nor_scikit_learn():
    program = "import sys, dna_deploy.regressor; print([m for m in ('scipy', 'sklearn', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
