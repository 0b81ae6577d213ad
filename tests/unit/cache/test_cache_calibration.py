"""Likelihoods, thresholds and the calibration that is built in."""

import pytest

from cache.agreement import FEATURES
from cache.calibration import VETOES, BadCalibration, Calibration, load_calibration
from cache.questions import Questions
from cache.semantic import Matcher
from rag.embedding import MultilingualE5


def _features(**values):
    return [values.get(name, 0.0) for name in FEATURES]


def test_likelihood_is_logistic_and_a_veto_ends_it():
    calibration = Calibration("m", {"cosine": 2.0}, -1.0, {})

    assert calibration.likelihood(_features(cosine=0.5)) == pytest.approx(0.5)
    assert calibration.likelihood(_features(cosine=1.0)) == pytest.approx(0.7311, abs=1e-4)
    for veto in VETOES:
        assert calibration.likelihood(_features(cosine=1.0, **{veto: 1.0})) == 0.0


def test_a_bound_takes_the_nearest_one_below():
    calibration = Calibration("m", {}, 0.0, {"pairs": {0.01: 0.9, 0.05: 0.7}})

    assert calibration.threshold(0.01) == 0.9
    assert calibration.threshold(0.03) == 0.9
    assert calibration.threshold(1.0) == 0.7
    with pytest.raises(BadCalibration, match=r"calibrated: 0\.01, 0\.05"):
        calibration.threshold(0.001)
    with pytest.raises(BadCalibration, match="none"):
        calibration.threshold(0.01, "lookups")


def test_the_one_built_in_is_for_the_products_embedder_and_stricter_for_smaller_bounds():
    calibration = load_calibration(embedder=MultilingualE5.name)

    for population in ("pairs", "lookups"):
        bounds = sorted(calibration.thresholds[population])
        thresholds = [calibration.threshold(bound, population) for bound in bounds]
        assert 0.01 in bounds
        assert thresholds == sorted(thresholds, reverse=True)
        assert all(0 < threshold < 1 for threshold in thresholds)
    assert calibration.weights["cosine"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a calibration"),
        ("embedder: m", "not a calibration"),
        ("[1]", "not a calibration"),
        ("a: [", "not a calibration"),
        ("embedder: m\nweights: {warmth: 1}\nbias: 0\nthresholds: {}", "unknown features: warmth"),
        ("embedder: other\nweights: {}\nbias: 0\nthresholds: {}", "for the embedding model 'other'"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)

    with pytest.raises(BadCalibration, match=message):
        load_calibration(path, "m")
    with pytest.raises(BadCalibration, match=r"none\.yaml"):
        load_calibration(tmp_path / "none.yaml")


def test_matches_are_those_over_the_threshold_likeliest_first(facts):
    questions = Questions()
    questions.add("far", "How do I pay at all?", [0.8, 0.6])
    questions.add("near", "How can I pay?", [1.0, 0.01])
    questions.add("number", "How do I pay 5 euros?", [1.0, 0.0])
    matcher = Matcher(Calibration("m", {"cosine": 40.0}, -30.0, {"pairs": {0.01: 0.6}}), facts)

    found = matcher.matches("How do I pay?", [1.0, 0.0], questions)

    assert [match.key for match in found] == ["near", "far"]
    assert found[0].likelihood > found[1].likelihood >= 0.6
