"""The network and training of airbench94 (Jordan 2024, arXiv:2404.00498), made for a CPU.

Evidence: 93.1 % of the test images, 93.7 % with test-time augmentation, after 15.6 minutes on 2
CPU cores (AMD EPYC, 2026-11-21); n=1, seed 0, its last layer still in bfloat16. On an A100, at 32
pixels throughout, Jordan reports 94.01 % (n=1000) after 9.9 epochs.

    python -m training.train airbench94 --final
"""

from training.augment import Augmentation
from training.cifar10.networks import fast_vgg, initialise
from training.cifar10.recipes import Recipe
from training.optimizers import AirbenchSGD, PiecewiseLinear

BATCH = 1024  # images


def optimizer(steps_per_epoch: int, epochs: float, bias_scale: float = 64) -> AirbenchSGD:
    steps = round(steps_per_epoch * epochs)
    return AirbenchSGD(
        PiecewiseLinear(11.5, [(0, 0.2), (0.23 * steps, 1), (steps, 0.07)]),
        batch_size=BATCH,
        momentum=0.85,
        weight_decay=0.0153,  # per 1,024 images, as the peak of 11.5 is
        bias_scale=bias_scale,  # times the rate for BatchNorm's offsets
        whiten_bias_steps=3 * steps_per_epoch,  # steps: 3 epochs
    )


recipe = Recipe(
    network=fast_vgg,
    initialise=initialise,
    optimizer=optimizer,
    epochs=11,
    batch_size=BATCH,
    augmentation=Augmentation(flip="alternating", crop=2),  # pixels
    label_smoothing=0.2,
    lookahead=5,  # steps
    # Pixels on a side from an epoch on: at 24 an epoch takes half the time that it does at 32.
    resolution={0: 24, 5: 28, 7: 32},
    dtype="auto",
)
