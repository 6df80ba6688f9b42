"""Train, evaluate and export image classifiers. Needs TensorFlow; what it exports does not."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import TypeVar

Result = TypeVar("Result")
STARTED = time.perf_counter()  # before TensorFlow's import, so that reported times include it

# Nothing about GPUs that are not there; what fails is a Python exception, too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def check_installed() -> None:
    """Exit with one line that says how to install what training needs, if it is not there."""
    if not find_spec("tensorflow"):
        sys.exit(
            'error: training needs TensorFlow: pip install "cifar10-cnn[train]", '
            "or in a clone: pip install -r requirements.txt"
        )


def import_keras() -> None:
    """Import Keras without what TensorFlow logs to stderr meanwhile, whatever the log level.

    Commands call this once their arguments are read, so that --help takes no time.
    """
    check_installed()
    from rest_api.engine import silent_stderr

    with silent_stderr():
        import keras  # noqa: F401


def results_of(calls: Mapping[str, Callable[[], Result]], cluster: str | None) -> Iterator[Result]:
    """The results of calls: made here one after the other, or side by side on a Ray cluster.

    Raises what they raise, and JobError.
    """
    if not cluster:
        yield from (call() for call in calls.values())
        return
    from rest_api.files import needs_ray

    with needs_ray():
        from training.cluster import side_by_side
    yield from side_by_side(calls, cluster)
