"""Measuring candidates and picking again, on a device whose true latencies the test made."""

import pytest

from dna_deploy.confirm import confirm

TABLE_MS = [1.0, 2.0, 3.0, 4.0, 5.0]  # what the table says of five networks; the larger the better


def run(true_ms, budget_ms, count, spread=1.0):
    """Confirm among the five; a network's own number is its name."""

    def best(factors, over):
        fitting = [n for n, ms in enumerate(TABLE_MS) if ms * factors[0] <= budget_ms and (n,) not in over]
        return (max(fitting),) if fitting else None

    def measure(choices, predicted_ms):
        return [(true_ms[choices[0]], spread * true_ms[choices[0]]) if true_ms else None]

    return confirm(
        count,
        [budget_ms],
        best=best,
        predict=lambda choices: [TABLE_MS[choices[0]]],
        measure=measure,
        score=lambda choices: -choices[0],
        name=lambda choices: str(choices[0]),
    )


def test_a_prediction_that_holds_is_accepted_at_once():
    done = run([1.01 * ms for ms in TABLE_MS], 4.5, 8)
    assert done.choices == (3,) and len(done.tried) == 1 and "agree within 2%" in done.ended
    assert done.factors == [pytest.approx(1.01)]


def test_a_device_slower_than_its_table_gets_a_smaller_network():
    done = run([1.3 * ms for ms in TABLE_MS], 4.5, 8)
    assert [tried.network for tried in done.tried] == ["3", "2"]
    assert not done.tried[0].fits and done.tried[1].fits and done.choices == (2,)
    assert done.tried[1].predicted_ms == [pytest.approx(3.9)] == done.tried[1].measured_ms


def test_a_device_faster_than_its_table_gets_a_larger_network():
    done = run([0.85 * ms for ms in TABLE_MS], 4.5, 8)
    assert [tried.network for tried in done.tried] == ["3", "4"] and done.choices == (4,)


def test_a_network_measured_over_the_budget_is_never_handed_out():
    done = run([1.0, 2.0, 3.0, 9.0, 9.0], 4.5, 8)
    assert done.choices != (3,) and all(tried.fits for tried in done.tried if tried.network == str(done.choices[0]))
    assert done.tried[0].network == "3" and not done.tried[0].fits
    assert done.over == [(int(tried.network),) for tried in done.tried if not tried.fits]


def test_the_list_ends_where_it_was_told_to():
    done = run([0.7, 1.9, 2.5, 3.0, 9.0], 4.5, 1)
    assert len(done.tried) == 1 and "all 1 candidates" in done.ended and done.choices == (3,)


def test_a_device_that_is_not_at_hand_leaves_the_prediction():
    done = run(None, 4.5, 8)
    assert done.choices == (3,) and done.tried == [] and "not at hand" in done.ended and done.factors == [1.0]


def test_nothing_fits_by_what_was_measured():
    assert run([9.0] * 5, 4.5, 8) is None


def test_it_is_the_measurements_bound_that_keeps_the_budget():
    done = run(TABLE_MS, 4.1, 8, spread=1.1)  # 4 ms measured, 4.4 ms its bound
    assert [tried.network for tried in done.tried] == ["3", "2"] and done.choices == (2,)
    assert done.factors == [1.0]


def test_a_network_measured_to_fit_ends_it_unless_a_better_one_may_fit():
    done = run([1.1 * ms for ms in TABLE_MS], 4.5, 8)  # 4 ms by the table, 4.4 measured; the next better one takes 5.5
    assert [tried.network for tried in done.tried] == ["3"] and done.choices == (3,)
    assert "nothing else" in done.ended
