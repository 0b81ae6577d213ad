"""What saturates an engine, on made-up curves; and when what was measured is of another engine."""

import pytest

from deploy.box import concurrency
from deploy.measured import Measured, NeverWithin, Place, Step, outdated, saturation


def curve(*pairs):
    """Steps of 1, 2, 4, ... streams from (tokens a second, milliseconds at p95)."""
    return [
        Step(streams=2**power, tokens_per_second=rate, ttft_p50_ms=wait / 2, ttft_p95_ms=wait)
        for power, (rate, wait) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        pytest.param([(50, 90), (90, 150), (150, 300), (240, 700), (360, 990)], 16, id="grows to the end"),
        pytest.param([(50, 90), (90, 150), (150, 300), (240, 1001), (360, 2500)], 4, id="past the objective"),
        pytest.param([(50, 90), (90, 150), (150, 1000)], 4, id="at the objective"),
        pytest.param([(50, 90), (90, 150), (94, 300), (96, 400)], 2, id="flat"),
        pytest.param([(100, 90), (105, 150)], 2, id="five percent is growth"),
        pytest.param([(100, 90), (104.9, 150)], 1, id="less is none"),
        pytest.param([(100, 90), (100, 90), (100, 90)], 1, id="flat from the beginning"),
        pytest.param([(100, 90), (80, 90), (60, 90)], 1, id="falls"),
        pytest.param([(50, 90), (90, 150), (70, 200), (160, 300)], 8, id="a dip, then more than before it"),
        pytest.param([(50, 90), (90, 150), (70, 200), (92, 300)], 2, id="a dip, then no more than before it"),
        pytest.param([(50, 90), (90, 1200), (150, 300)], 4, id="one late burst among the early"),
        pytest.param([(50, 1100), (90, 150), (150, 1300)], 2, id="late at the smallest"),
        pytest.param([(50, 1100), (51, 150), (52, 200)], 2, id="within without growth"),
        pytest.param([(50, 90)], 1, id="one step"),
    ],
)
def test_the_saturation_of_a_curve(pairs, found):
    assert saturation(curve(*pairs), 1000) == found


def test_the_order_of_steps_does_not_matter():
    steps = curve((50, 90), (90, 150), (150, 300), (152, 500))

    assert saturation(steps[::-1], 1000) == saturation(steps, 1000) == 4


def test_never_within_the_objective_is_an_error_that_says_how_far_it_was():
    with pytest.raises(NeverWithin, match=r"1400 ms at p95 with 1 stream, and 1000 ms are wanted: raise --slo-ttft-ms"):
        saturation(curve((50, 1400), (90, 2000)), 1000)
    with pytest.raises(NeverWithin, match="1300 ms at p95 with 2 streams"):
        saturation(curve((50, 1400), (90, 1300)), 1000)


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="nothing was measured"):
        saturation([], 1000)


@pytest.mark.parametrize(("saturates", "kept"), [(64, 44), (10, 7), (2, 1), (1, 1)])
def test_another_engine_is_started_before_one_is_saturated(saturates, kept):
    assert concurrency(saturates) == kept


ENGINE = {"model": "small:1", "adapters": 2, "max_num_seqs": 64}
HERE = Measured(engine=ENGINE, place=Place(device="cpu", cores=2))


@pytest.mark.parametrize(
    ("engine", "more", "told"),
    [
        ({}, {}, []),
        ({"model": "small:2"}, {}, ["model small:1, now small:2"]),
        ({"max_num_seqs": 32, "adapters": 0}, {}, ["adapters 2, now 0", "max_num_seqs 64, now 32"]),
        ({"block_size": 32}, {}, ["block_size unset, now 32"]),
        ({}, {"cpu": 4.0}, ["on 2 cores, now engine.resources.cpu 4"]),
        ({}, {"device": "cuda", "cpu": 4.0}, ["on cpu, now on cuda"]),
    ],
)
def test_what_differs_from_the_engine_that_was_measured(engine, more, told):
    assert outdated(HERE, {**ENGINE, **engine}, **{"device": "cpu", "cpu": 2.0, **more}) == told


def test_a_file_of_another_load_test_says_nothing_of_its_engine():
    measured = Measured.model_validate_json('{"cold_start_seconds": 31.5, "saturation": 40}')

    assert outdated(measured, ENGINE, device="cuda") == []
