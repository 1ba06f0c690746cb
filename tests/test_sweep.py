"""Every public function of JAX and optax, saved and loaded: the same bits, or refused by name."""

from __future__ import annotations

import pytest
from sweep import arguments, expected, functions, round_trip

FUNCTIONS = functions.public_functions()
CALLED = sorted(set(FUNCTIONS) - set(expected.NOT_CALLED))

# JAX and optax warn of what some of these arguments are; the sweep is about what comes back.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", CALLED)
def test_function_comes_back_bit_for_bit_or_is_refused(name):
    calls = arguments.calls(name, FUNCTIONS[name])
    assert calls, "no simple arguments fit: add some to sweep/special_calls.py"
    outcomes = [round_trip.outcome(call) for call in calls]
    assert [o for o in outcomes if o.startswith(round_trip.DIFFERENT)] == []
    refused = {
        primitive
        for outcome in outcomes
        if outcome.startswith(round_trip.REFUSED)
        for primitive in outcome.removeprefix(round_trip.REFUSED).split(", ")
    }
    assert refused == expected.REFUSED.get(name, frozenset())


def test_all_functions_come_back():
    assert set(expected.REFUSED) & set(CALLED) == set()


def test_what_is_not_called_or_refused_is_still_there():
    named = {*expected.NOT_CALLED, *expected.REFUSED}
    assert sorted(named - set(FUNCTIONS) - expected.NOT_EVERYWHERE) == []


@pytest.mark.parametrize("name", sorted(set(expected.NOT_CALLED) & set(FUNCTIONS)))
def test_function_that_is_not_called_takes_no_simple_arguments(name):
    assert arguments.calls(name, FUNCTIONS[name]) == []
