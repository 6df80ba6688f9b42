import numpy as np
import pytest

from benchmarks.quality.selective_prediction import selective, threshold_of
from training import metrics


@pytest.fixture
def logits_and_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 5_000)
    logits = rng.normal(size=(5_000, 10))
    logits[np.arange(5_000), labels] += 2
    return logits, labels


def test_confusion_matrix_counts_true_rows_and_answered_columns():
    scores = np.eye(3)[[0, 1, 1, 2]]
    matrix = metrics.confusion_matrix(scores, np.array([0, 0, 1, 2]))
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert metrics.per_class_accuracy(scores, np.array([0, 0, 1, 2])).tolist() == [0.5, 1, 1]
    assert metrics.accuracy(scores, np.array([0, 0, 1, 2])) == 0.75


def test_calibration_error_of_a_hand_made_case():
    # 10 answers at 90 %, of which 7 are right; 10 at 60 %, of which 6 are.
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [0] * 6 + [1] * 4)
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(0.1)


def test_temperature_undoes_a_scaling_of_the_logits(logits_and_labels):
    logits, labels = logits_and_labels
    base = metrics.fit_temperature(logits, labels)
    assert metrics.fit_temperature(logits * 3, labels) == pytest.approx(base * 3, rel=2e-3)


def test_temperature_lowers_the_calibration_error(logits_and_labels):
    logits, labels = logits_and_labels
    logits = logits * 4
    temperature = metrics.fit_temperature(logits, labels)
    before, after = (
        metrics.expected_calibration_error(metrics.softmax(logits / t), labels)
        for t in (1, temperature)
    )
    assert after < before / 4


def test_few_images_that_are_all_right_do_not_make_a_network_sure_of_everything():
    labels = np.arange(10) % 2
    logits = np.eye(2)[labels]  # right ten times of ten: no more can be said than 11 of 12
    sure = metrics.softmax(logits / metrics.fit_temperature(logits, labels)).max(1)
    np.testing.assert_allclose(sure, 11 / 12, atol=1e-3)


def test_views_are_the_image_its_shifts_and_their_mirrors():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    views = metrics.views(images)
    assert sum(weight for weight, _ in views) == 1
    assert [weight for weight, _ in views] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    np.testing.assert_array_equal(views[0][1], images)
    np.testing.assert_array_equal(views[1][1], images[:, :, ::-1])
    np.testing.assert_array_equal(views[2][1][:, 1:, 1:], images[:, :-1, :-1])
    np.testing.assert_array_equal(views[4][1][:, :-1, :-1], images[:, 1:, 1:])


def test_temperature_of_several_views_is_fitted_on_the_mean_of_their_logits():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = rng.normal(0, 2, (400, 2, 5)) + 3 * np.eye(5)[labels][:, None]
    temperature = metrics.fit_temperature(logits, labels)

    def loss(t: float) -> float:
        return metrics.cross_entropy(metrics.softmax(logits.mean(1) / t), labels)

    assert loss(temperature) < min(loss(temperature * 1.1), loss(temperature / 1.1))
    same = np.repeat(logits[:, :1], 2, axis=1)
    assert metrics.fit_temperature(same, labels) == pytest.approx(
        metrics.fit_temperature(logits[:, 0], labels), rel=1e-3
    )


@pytest.mark.parametrize("shares", [(1,), (0.5, 0.5), (0.2, 0.8)])
def test_joint_thresholds_reject_as_many_as_asked_together_and_each_its_share(shares):
    rng = np.random.default_rng(0)
    measures = [rng.random(1000), rng.normal(0, 30, 1000)][: len(shares)]
    thresholds = metrics.joint_thresholds(measures, shares, 0.95)
    rejected = np.array([m < t for m, t in zip(measures, thresholds, strict=True)])
    assert rejected.any(0).mean() == pytest.approx(0.05, abs=0.002)
    each = rejected.mean(1)
    np.testing.assert_allclose(each / each.sum(), shares, atol=0.03)


def test_threshold_is_reached_by_the_wanted_fraction_of_predictions(logits_and_labels):
    logits, labels = logits_and_labels
    probabilities = metrics.softmax(logits)
    threshold = threshold_of(probabilities, 0.8)
    coverage, accuracy = selective(probabilities, labels, threshold)
    assert coverage == pytest.approx(0.8, abs=0.01)
    assert accuracy > metrics.accuracy(probabilities, labels)  # what it holds back is worse


def test_selective_figures_of_a_hand_made_case():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
    labels = np.array([0, 1, 0])
    assert selective(probabilities, labels, 0.7) == (pytest.approx(2 / 3), 0.5)
    assert selective(probabilities, labels, 0.95) == (0.0, 1.0)


def test_interval_of_a_proportion_is_wilsons():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20
    assert metrics.interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert metrics.interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_auroc_counts_pairs_in_the_right_order():
    known, unknown = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    pairs = [(k > u) + 0.5 * (k == u) for k in known for u in unknown]
    assert metrics.auroc(known, unknown) == pytest.approx(np.mean(pairs))
