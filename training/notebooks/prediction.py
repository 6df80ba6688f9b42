# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One network in four formats: what each costs to run
#
# A network trained with Keras can be served by Keras, as a TensorFlow SavedModel, or by LiteRT
# (formerly TensorFlow Lite), there also in 8-bit integers. **Question**: do they give the same
# predictions, and what does each cost? **Experiment**: the same photos through each, Keras in two
# ways, one at a time on one thread, as a server receives them.
#
# **To run it**: as [transfer_learning.ipynb](transfer_learning.ipynb), which writes the bundle that
# is used here; if it is missing, it is made first.

# %%
import os
import time
from pathlib import Path

if Path.cwd().name == "docs":  # editors start a notebook in its own folder
    os.chdir("..")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rest_api.bundle import load_bundle
from rest_api.engine import load_engine
from training import metrics, plots
from training.photos.features import served
from training.photos.inspect import split, survey
from training.photos.transfer import transfer

tf.config.threading.set_intra_op_parallelism_threads(1)  # as LiteRT's interpreters
PHOTOS = Path(os.environ.get("PHOTOS", "photos"))
BUNDLE = Path("bundles", PHOTOS.name)
if not (BUNDLE / "saved_model").exists():
    transfer(PHOTOS, BUNDLE, saved_model=True)
bundle = load_bundle(BUNDLE)
pd.options.display.float_format = "{:.2f}".format

# %% [markdown]
# ## The photos
#
# The bundle's test photos, each resized as the server would resize it.

# %%
photos = split(survey(PHOTOS).photos)["test"]
(images,) = served(photos, bundle.input_size, bundle.views)
class_ids = np.array([bundle.labels.index(photo.label) for photo in photos])
print(len(images), "photos of", images.shape[1:])

# %% [markdown]
# ## Five ways to predict
#
# Each is a function from images to probabilities and scores. The first is the one of most
# tutorials: `model.predict`, which is made for large batches, called here for every photo.


# %%
def saved_model():
    """The SavedModel, called by its `serve` signature."""
    loaded = tf.saved_model.load(str(BUNDLE / "saved_model"))
    return lambda images: [each.numpy() for each in loaded.serve(images.astype(np.float32))]


def keras_predict():
    """The .keras file, called by model.predict."""
    network = keras.saving.load_model(BUNDLE / "model.keras", compile=False)
    return lambda images: network.predict(images.astype(np.float32), verbose=0)


def folder_size(path):
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


ways = {
    "Keras, model.predict": (keras_predict, "model.keras"),
    "Keras, compiled call": (lambda: load_engine(bundle, "keras"), "model.keras"),
    "SavedModel": (saved_model, "saved_model"),
    "LiteRT, 32 bits": (lambda: load_engine(bundle, "litert-float32"), "model.tflite"),
    "LiteRT, 8 bits": (lambda: load_engine(bundle, "litert"), "model.int8.tflite"),
}

# %%
probabilities, rows = {}, {}
for name, (load, file) in ways.items():
    start = time.perf_counter()
    predict = load()
    predict(images[:1])
    loaded = time.perf_counter() - start
    seconds, results = [], []
    for image in images:
        start = time.perf_counter()
        results.append(predict(image[None])[0][0])
        seconds.append(time.perf_counter() - start)
    probabilities[name] = np.stack(results)  # (photos, classes)
    rows[name] = {
        "size (MB)": folder_size(BUNDLE / file) / 1e6,
        "load and first answer (s)": loaded,
        "one photo, median (ms)": 1000 * np.median(seconds),
        "99th percentile (ms)": 1000 * np.quantile(seconds, 0.99),
        "accuracy (%)": 100 * metrics.accuracy(probabilities[name], class_ids),
    }
pd.DataFrame(rows).T

# %%
latencies = {name: row["one photo, median (ms)"] for name, row in rows.items()}
plots.show(plots.costs(latencies, "one photo on one thread, median (ms)"), "formats_latency")

# %% [markdown]
# ## Are the predictions the same?

# %%
reference = probabilities["Keras, model.predict"]
pd.DataFrame(
    {
        name: {
            "largest difference of a probability": f"{abs(each - reference).max():.0e}",
            "photos with another best class": (each.argmax(1) != reference.argmax(1)).sum(),
        }
        for name, each in probabilities.items()
    }
).T

# %% [markdown]
# **Conclusion**: with 32-bit weights all formats agree to five digits. In 8-bit integers a
# probability changes by up to 0.6, and two of 221 photos get another class, which leaves accuracy
# unchanged. `model.predict` takes 63 ms for what a compiled call of the same network does in 18.
# LiteRT needs 12, in integers 6, and loads in hundredths of a second where TensorFlow takes one and
# a half (and some seconds more to be imported, which is not counted). The 8-bit file is a third of
# the size.
