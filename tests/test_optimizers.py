import keras
import numpy as np
import pytest

from training.optimizers import (
    AirbenchMuon,
    AirbenchSGD,
    Triangle,
    orthogonalise,
    piecewise_constant,
)


def test_triangle_rises_to_its_peak_and_falls_to_its_end():
    schedule = Triangle(peak=10.0, steps=100, start=0.2, top=0.23, end=0.07)
    rates = [float(schedule(step)) for step in (0, 23, 100)]
    assert rates == pytest.approx([2.0, 10.0, 0.7], rel=1e-5)
    assert float(schedule(61.5)) == pytest.approx(5.35, rel=1e-5)


def test_triangle_stays_at_its_end():
    schedule = Triangle(peak=10.0, steps=100, start=1, top=0, end=0.05)
    assert [float(schedule(step)) for step in (100, 110)] == pytest.approx([0.5, 0.5])


def test_triangle_goes_on_at_another_rate_after_its_steps():
    schedule = Triangle(peak=10.0, steps=100, start=1, top=0, end=0, after=0.25)
    assert [float(schedule(step)) for step in (99, 100, 110)] == pytest.approx([0.1, 2.5, 2.5])


def test_triangle_without_a_rise_falls_from_the_start():
    schedule = Triangle(peak=1.0, steps=10, start=1, top=0, end=0)
    assert [float(schedule(step)) for step in (0, 5, 10, 12)] == pytest.approx([1, 0.5, 0, 0])


def test_steps_change_at_their_fractions_of_training():
    schedule = piecewise_constant({0: 1.0, 0.5: 0.1, 0.9: 0.01}, steps=10)
    rates = [float(schedule(step)) for step in range(10)]
    assert rates == pytest.approx([1.0] * 5 + [0.1] * 4 + [0.01])


class Layer(keras.layers.Layer):
    """Variables named as in the fast network: a kernel, BatchNorm's beta, the whitening bias."""

    def __init__(self):
        super().__init__(name="whiten")
        self.kernel = self.add_weight(shape=(3, 3, 4, 8), name="kernel")
        self.beta = self.add_weight(shape=(8,), name="beta")
        self.bias = self.add_weight(shape=(8,), name="bias")


def run(optimizer, steps: int):
    """Apply reproducible gradients; return the values before and after, and the gradients."""
    rng = np.random.default_rng(0)
    layer = Layer()
    variables = [layer.kernel, layer.beta, layer.bias]
    for v in variables:
        v.assign(rng.normal(size=v.shape))
    before = [v.numpy() for v in variables]
    gradients = [
        [rng.normal(size=v.shape).astype("float32") for v in variables] for _ in range(steps)
    ]
    for each in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in each], variables)
    return before, [v.numpy() for v in variables], gradients


def test_airbench_sgd_equals_nesterov_sgd_in_decoupled_form():
    schedule = Triangle(peak=11.5, steps=20, start=0.2, top=0.23, end=0.07)
    optimizer = AirbenchSGD(schedule, batch_size=512, whiten_bias_steps=3)
    before, after, gradients = run(optimizer, 6)

    scale = 0.5 / (1 + 1 / (1 - 0.85))  # of batches of 512 and momentum 0.85
    for index, (faster, active) in enumerate([(1, 6), (64, 6), (1, 3)]):
        x, velocity = before[index].astype(np.float64), 0.0
        for step in range(active):
            gradient = gradients[step][index]
            fraction = float(schedule(step)) / 11.5
            velocity = 0.85 * velocity + gradient
            decay = 0.0153 * 0.5 * fraction * x
            x = x - 11.5 * fraction * scale * faster * (gradient + 0.85 * velocity) - decay
        np.testing.assert_allclose(after[index], x, rtol=1e-3, atol=1e-3)


def test_muon_moves_a_kernel_along_the_orthogonalised_momentum():
    schedule = Triangle(peak=6.5, steps=10, start=1, top=0, end=0)
    before, after, gradients = run(AirbenchMuon(schedule, batch_size=1024), 1)
    unit = before[0] * np.sqrt(8) / np.linalg.norm(before[0])
    move = (unit - after[0]).reshape(36, 8) / 0.24
    singular = np.linalg.svd(move, compute_uv=False)
    assert singular.min() > 0.4
    assert singular.max() < 1.6
    u, _, vt = np.linalg.svd(gradients[0][0].reshape(36, 8), full_matrices=False)
    cosine = (move * (u @ vt)).sum() / np.linalg.norm(move) / np.sqrt(8)
    assert cosine > 0.95


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    singular = np.linalg.svd(np.asarray(orthogonalise(matrix, steps=5)), compute_uv=False)
    assert 0.6 < singular.min() <= singular.max() < 1.3
