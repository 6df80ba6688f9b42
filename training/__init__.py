"""Train, evaluate and export image classifiers. Needs TensorFlow; what it exports does not."""

import os
import time

STARTED = time.perf_counter()  # before TensorFlow's import, so that reported times include it

# Nothing about GPUs that are not there; what fails is a Python exception, too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def import_keras() -> None:
    """Import Keras without what TensorFlow logs to stderr meanwhile, whatever the log level.

    Commands call this once their arguments are read, so that --help takes no time.
    """
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)  # TensorFlow writes to the descriptor, not to sys.stderr
        import keras  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
