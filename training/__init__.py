"""Train, evaluate and export image classifiers. Needs TensorFlow; what it exports does not."""

import os
import time

STARTED = time.perf_counter()  # before TensorFlow's import, so that reported times include it

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no hints about GPUs that are not there
