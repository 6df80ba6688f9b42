"""airbench94's network and training (Jordan 2024, arXiv:2404.00498), for a CPU."""

from training.augment import Augmentation
from training.networks import fast_vgg, initialise
from training.optimizers import AirbenchSGD, Triangle
from training.recipes import Recipe

BATCH = 1024


def optimizer(steps_per_epoch: int, epochs: float) -> AirbenchSGD:
    return AirbenchSGD(
        Triangle(peak=11.5, steps=int(steps_per_epoch * epochs), start=0.2, top=0.23, end=0.07),
        batch_size=BATCH,
        momentum=0.85,
        weight_decay=0.0153,
        bias_scale=64,
        whiten_bias_steps=3 * steps_per_epoch,
    )


recipe = Recipe(
    network=fast_vgg,
    initialise=initialise,
    optimizer=optimizer,
    epochs=11,
    batch_size=BATCH,
    augmentation=Augmentation(flip="alternating", crop=2),
    label_smoothing=0.2,
    lookahead=5,
    resolution={0: 24, 5: 28, 7: 32},
    dtype="mixed_bfloat16",
)
