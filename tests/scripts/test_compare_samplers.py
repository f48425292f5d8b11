"""Samplers and steps: errors in a Gaussian world, where the order of a method is known."""

import pytest

from compare_samplers import SCHEDULES, flow_error


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_twice_the_steps_of_a_method_of_first_order_halve_the_error(sampler, schedule):
    assert flow_error(sampler, 40, schedule) / flow_error(sampler, 80, schedule) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["heun", "dpm-solver++"])
def test_twice_the_steps_of_a_method_of_second_order_do_at_least_quarter_it(sampler, schedule):
    assert flow_error(sampler, 20, schedule) / flow_error(sampler, 40, schedule) > 4
