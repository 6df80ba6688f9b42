"""What a training step of fast94 costs, by its parts: `python -m benchmarks.training.step`.

Prints images per second of the step alone, on random images, for the recipe and for variants
that differ from it in one thing.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

from benchmarks.common import command_line, print_table
from training import import_keras


def rows() -> Iterator[list[str]]:
    import keras

    from benchmarks.training.speed import images_per_second
    from training.cifar10 import networks, recipes, train

    fast94 = recipes.load("fast94")
    fast94 = replace(fast94, dtype=train.dtype_of(fast94))  # the same in all rows

    def frozen_bias() -> keras.Model:
        network = networks.fast_vgg()
        network.get_layer("whiten").bias.trainable = False
        return network

    def measured(name: str, size: int = 32, recipe: recipes.Recipe = fast94) -> list[str]:
        return [name, f"{images_per_second(recipe, size):,.0f}"]

    yield measured("`fast94` at 32 pixels")
    for size in (28, 24, 20):
        yield measured(f"at {size} pixels", size)
    for name, change in {
        "in float32": {"dtype": "float32"},
        "whitening bias frozen": {"network": frozen_bias},
        "batches of 500": {"batch_size": 500},
        "first block of 32 filters": {"network": partial(networks.fast_vgg, (32, 256, 256))},
    }.items():
        yield measured(name, recipe=replace(fast94, **change))
    for name, part, other in (
        ("Keras's own BatchNormalization", "BatchNorm", keras.layers.BatchNormalization),
        ("exact GELU", "gelu", partial(keras.ops.gelu, approximate=False)),
        ("GELU in its tanh form", "gelu", partial(keras.ops.gelu, approximate=True)),
        ("ReLU", "gelu", keras.ops.relu),
    ):
        with patch.object(networks, part, other):
            yield measured(name)


def main() -> None:
    command_line(__doc__).parse_args()
    import_keras()
    from benchmarks.training.speed import matrix_product_gflops

    for dtype in ("float32", "bfloat16"):
        print(f"Matrix product in {dtype}: {matrix_product_gflops(dtype):.0f} GFLOP/s\n")
    print_table(["variant", "images/s"], rows())


if __name__ == "__main__":
    main()
