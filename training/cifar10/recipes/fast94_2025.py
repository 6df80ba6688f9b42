"""The network of airbench94 (Jordan 2024, arXiv:2404.00498), trained by Muon, made for a CPU.

Evidence: 94.18 ± 0.11 % of the test images with test-time augmentation, 93.38 ± 0.16 % without,
after 16.6 minutes on 2 CPU cores (AMD EPYC, 2026-11-27), all included; mean ± std, n=3.

    python -m training.train fast94_2025 --final --seed N
"""

from training.augment import Augmentation
from training.cifar10.networks import fast_vgg, initialise
from training.cifar10.recipes import Recipe
from training.optimizers import AirbenchMuon, PiecewiseLinear

BATCH = 2000  # images


def optimizer(steps_per_epoch: int, epochs: float) -> AirbenchMuon:
    return AirbenchMuon(
        # From the peak straight down to nothing.
        PiecewiseLinear(6.5, [(0, 1), (round(steps_per_epoch * epochs), 0)]),
        batch_size=BATCH,
        filter_rate=0.24,  # of the convolutions, at the peak
        filter_momentum=0.6,
        whiten_bias_steps=3 * steps_per_epoch,  # steps: 3 epochs
    )


recipe = Recipe(
    network=fast_vgg,
    initialise=initialise,
    optimizer=optimizer,
    epochs=10,
    batch_size=BATCH,
    augmentation=Augmentation(flip="alternating", crop=2),  # pixels
    label_smoothing=0.2,
    # Pixels on a side from an epoch on: at 24 an epoch takes half the time that it does at 32.
    resolution={0: 24, 3: 32},
    dtype="auto",
)
