"""trial"""

from training.augment import Augmentation
from training.networks import fast_vgg, initialise
from training.optimizers import AirbenchMuon, Triangle
from training.recipes import Recipe

BATCH = 2000


def optimizer(steps_per_epoch: int, epochs: float) -> AirbenchMuon:
    return AirbenchMuon(
        Triangle(peak=6.5, steps=int(steps_per_epoch * epochs), start=1, top=0, end=0),
        batch_size=BATCH,
        whiten_bias_steps=3 * steps_per_epoch,
    )


recipe = Recipe(
    network=fast_vgg,
    initialise=initialise,
    optimizer=optimizer,
    epochs=8,
    batch_size=BATCH,
    augmentation=Augmentation(flip="alternating", crop=2),
    label_smoothing=0.2,
    resolution={0: 24, 3: 28, 5: 32},
    dtype="mixed_bfloat16",
)
