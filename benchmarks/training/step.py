"""What a training step of fast94 costs, by its parts: `python -m benchmarks.training.step`.

Prints images per second of the step alone, on random images, for the recipe, with the whitening
layer frozen as it mostly is, and for variants that differ from it in one thing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from unittest.mock import patch

from benchmarks.common import command_line, print_table
from training import import_keras


def rows() -> Iterator[list[str]]:
    import keras

    from benchmarks.training.speed import images_per_second
    from training.cifar10 import networks, recipes, train
    from training.cifar10.recipes.fast94 import WIDTHS, recipe

    recipe = replace(recipe, dtype=train.dtype_of(recipe))  # the same in all rows

    def network(widths: Sequence[int] = WIDTHS, activation: Callable = keras.ops.silu) -> Callable:
        return partial(networks.residual_vgg, widths, activation=activation)

    def measured(
        name: str, size: int = 32, frozen: str = "whiten", variant: recipes.Recipe = recipe
    ) -> list[str]:
        return [name, f"{images_per_second(variant, size, frozen):,.0f}"]

    yield measured("`fast94` at 32 pixels")
    for size in (28, 24, 20):
        yield measured(f"at {size} pixels", size)
    yield measured("the first block frozen", frozen="norm1c")
    for name, change in {
        "in float32": {"dtype": "float32"},
        "batches of 2,000": {"batch_size": 2000},
        "first block of 32 filters": {"network": network((32, *WIDTHS[1:]))},
        "GELU in its sigmoid form": {"network": network(activation=networks.gelu)},
        "GELU in its tanh form": {"network": network(activation=keras.ops.gelu)},
        "exact GELU": {"network": network(activation=partial(keras.ops.gelu, approximate=False))},
        "ReLU": {"network": network(activation=keras.ops.relu)},
    }.items():
        yield measured(name, variant=replace(recipe, **change))
    with patch.object(networks, "BatchNorm", keras.layers.BatchNormalization):
        yield measured("Keras's own BatchNormalization")


def main() -> None:
    command_line(__doc__).parse_args()
    import_keras()
    from benchmarks.training.speed import matrix_product_gflops

    for dtype in ("float32", "bfloat16"):
        print(f"Matrix product in {dtype}: {matrix_product_gflops(dtype):.0f} GFLOP/s\n")
    print_table(["variant", "images/s"], rows())


if __name__ == "__main__":
    main()
