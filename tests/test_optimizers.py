import keras
import numpy as np
import pytest

from training.optimizers import (
    AirbenchMuon,
    AirbenchSGD,
    PiecewiseLinear,
    orthogonalise,
    piecewise_constant,
)


def test_piecewise_linear_rises_to_its_peak_falls_and_stays_at_its_end():
    schedule = PiecewiseLinear(10.0, [(0, 0.2), (23, 1), (100, 0.07)])
    rates = [float(schedule(step)) for step in (0, 11.5, 23, 61.5, 100, 110)]
    assert rates == pytest.approx([2.0, 6.0, 10.0, 5.35, 0.7, 0.7], rel=1e-5)


def test_piecewise_linear_jumps_where_two_points_share_a_step():
    schedule = PiecewiseLinear(10.0, [(0, 1), (100, 0), (100, 0.6), (120, 0.2)])
    rates = [float(schedule(step)) for step in (99, 100, 110, 120, 200)]
    assert rates == pytest.approx([0.1, 6.0, 4.0, 2.0, 2.0], rel=1e-5)


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
    schedule = PiecewiseLinear(11.5, [(0, 0.2), (4.6, 1), (20, 0.07)])
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
    schedule = PiecewiseLinear(6.5, [(0, 1), (10, 0)])
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
