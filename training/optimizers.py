"""The optimizers and learning-rate schedules of the recipes, on any Keras backend."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import keras
from keras import KerasTensor as Tensor
from keras import ops


class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Linear between `points` (step, fraction of the peak), and constant after the last of them.

    The first is at step 0. Two at one step are a jump: it is at the second there.
    """

    def __init__(self, peak: float, points: Sequence[tuple[float, float]]):
        self.peak, self.points = peak, points

    def __call__(self, step: Tensor | int) -> Tensor:
        step = ops.cast(step, "float32")
        fraction = self.points[-1][1]
        for (start, first), (end, last) in reversed(list(pairwise(self.points))):
            if end > start:
                line = first + (last - first) * (step - start) / (end - start)
                fraction = ops.where(step < end, line, fraction)
        return self.peak * fraction

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


def piecewise_constant(
    learning_rates: Mapping[float, float], steps: int
) -> keras.optimizers.schedules.PiecewiseConstantDecay:
    """The schedule {fraction of the `steps` of training: learning rate from there on}."""
    boundaries = [round(fraction * steps) - 1 for fraction in list(learning_rates)[1:]]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        boundaries, list(learning_rates.values())
    )


class AirbenchSGD(keras.optimizers.Optimizer):
    """SGD with Nesterov momentum in airbench's decoupled form (Jordan 2024, arXiv:2404.00498).

    `learning_rate` and `weight_decay` are per 1024 examples and mean the same whatever the
    momentum and the batch size: Nesterov momentum lengthens steps by 1 + 1 / (1 - momentum), so
    the rate is divided by that; the decay follows the rate's schedule but not its size. The
    offsets of BatchNorm (`beta`) learn `bias_scale` times faster. The bias of the whitening
    layer stops after `whiten_bias_steps`.
    """

    scaled: tuple[str, ...] = ("beta",)  # endings of the paths of the variables that learn faster

    def __init__(
        self,
        learning_rate: PiecewiseLinear,
        batch_size: int,
        momentum: float = 0.85,
        weight_decay: float = 0.0153,
        bias_scale: float = 64.0,
        whiten_bias_steps: int = 0,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        self.peak, self.batch_size, self.momentum = learning_rate.peak, batch_size, momentum
        self.decay, self.bias_scale = weight_decay, bias_scale
        self.whiten_bias_steps = whiten_bias_steps

    def build(self, variables: list[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            self.momenta = [self.add_variable_from_reference(v, "momentum") for v in variables]
            self.paths = [v.path for v in variables]  # TensorFlow's own variables carry none

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        examples = self.batch_size / 1024
        rate = learning_rate * examples / (1 + 1 / (1 - self.momentum))
        path = self.paths[self._get_variable_index(variable)]
        rate = rate * self.bias_scale if path.endswith(self.scaled) else rate
        decay = learning_rate / self.peak * self.decay * examples
        step = rate * self.nesterov(gradient, variable, self.momentum) + decay * variable
        if path.endswith("whiten/bias"):
            step = step * ops.cast(self.iterations < self.whiten_bias_steps, step.dtype)
        self.assign_sub(variable, step)

    def nesterov(self, gradient: Tensor, variable: keras.Variable, momentum: float) -> Tensor:
        """Update the variable's running momentum; return the gradient, looking one step ahead."""
        running = self.momenta[self._get_variable_index(variable)]
        ahead = running * momentum + gradient
        self.assign(running, ahead)
        return gradient + ahead * momentum


class AirbenchMuon(AirbenchSGD):
    """Muon for the convolutions, `AirbenchSGD` for the rest (Jordan et al. 2024, "Muon").

    A kernel's update is its momentum made orthogonal; before it, the kernel is scaled so that the
    norm of its filters is 1 in root mean square, which takes the place of weight decay.
    `filter_rate` follows the schedule of `learning_rate`. The whitening bias learns as fast as the
    offsets of BatchNorm.
    """

    scaled = ("beta", "whiten/bias")

    def __init__(
        self, *args: Any, filter_rate: float = 0.24, filter_momentum: float = 0.6, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.filter_rate, self.filter_momentum = filter_rate, filter_momentum

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        if len(variable.shape) != 4:
            super().update_step(gradient, variable, learning_rate)
            return
        filters = variable.shape[-1]
        ahead = ops.reshape(self.nesterov(gradient, variable, self.filter_momentum), (-1, filters))
        update = ops.reshape(orthogonalise(ahead), variable.shape)
        unit = variable * (filters**0.5 / ops.norm(ops.reshape(variable, (-1,))))
        self.assign(variable, unit - learning_rate / self.peak * self.filter_rate * update)


def orthogonalise(matrix: Tensor, steps: int = 3) -> Tensor:
    """Bring the singular values of a matrix (M, N) near 1 by a quintic Newton-Schulz iteration.

    The coefficients are Jordan's: three steps leave all but tiny values between about 0.5 and 1.5,
    which serves as well as 1 here and costs a third of the exact answer.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = ops.transpose(matrix) if tall else matrix
    x = x / (ops.norm(x) + 1e-7)
    for _ in range(steps):
        square = ops.matmul(x, ops.transpose(x))
        x = 3.4445 * x + ops.matmul(-4.7750 * square + 2.0315 * ops.matmul(square, square), x)
    return ops.transpose(x) if tall else x
