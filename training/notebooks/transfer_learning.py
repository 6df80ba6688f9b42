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
# # Your own classes: from a folder of photos to a served classifier
#
# A few hundred photos are too few to train a network from scratch. A network that has seen
# ImageNet's million already knows edges, textures and parts; only the last step, from those to
# your classes, has to be learnt. Here the classes are six kinds of natural scenes; for yours,
# `python -m training.transfer PHOTOS` does all of this in one go. This notebook shows what that
# command does, and why.
#
# **To run it**: on your computer, also in VS Code, `pip install -r requirements.txt`, open this
# file and run all cells with `PHOTOS` set to your folder, one folder of photos a class. In Colab,
# first run, in a cell of its own, `!git clone ADDRESS . && pip install -q -r requirements.txt` with
# this repository's address (in an empty folder: `%rm -rf sample_data`). MobileNetV2's ImageNet
# weights are downloaded by Keras; to use a file, set `WEIGHTS` to it and `WIDTH` to its alpha.

# %%
import os
from pathlib import Path

if Path.cwd().name == "docs":  # an editor starts notebooks where they lie
    os.chdir("..")

import numpy as np
import pandas as pd
from IPython.display import display

from rest_api.app import create_app
from rest_api.bundle import load_bundle
from rest_api.settings import Settings
from training import metrics, plots
from training.photos.backbones import BACKBONES, load_backbone
from training.photos.features import VIEWS, cache_name, features, pooled, view_of
from training.photos.inspect import report, split, survey
from training.photos.report import as_lines
from training.photos.transfer import transfer
from training.photos.tuning import best_penalty, fit_heads

PHOTOS = Path(os.environ.get("PHOTOS", "photos"))
WEIGHTS, WIDTH = os.environ.get("WEIGHTS"), float(os.environ.get("WIDTH", "1"))
pd.options.display.float_format = "{:.1f}".format

# %% [markdown]
# ## Look first
#
# Every file is read as the server would read it. Copies are left out, and photos that look alike
# stay on one side of the split, or the test would ask for what was learnt by heart. A photo's side
# depends on its content alone: when the folder grows, the old photos stay where they were.

# %%
found = survey(PHOTOS)
labels, parts = found.labels, split(found.photos)
print(report(found))

# %%
some = [photo for label in labels for photo in [p for p in parts["train"] if p.label == label][:2]]
plots.show(
    plots.pictures(
        np.stack([view_of(photo, 0, 64, "pad") for photo in some]),
        [photo.label for photo in some],
        columns=6,
    ),
    "transfer_photos",
)

# %% [markdown]
# ## What the backbone sees
#
# **Question**: the network was trained on ImageNet's thousand things, not on these classes. Does
# what it sees tell them apart? **Experiment**: each photo is shown to it once (and a training
# photo in three more views: mirrored, and cropped in another light); the mean of its last maps is
# kept. Of those 1,280 numbers a photo, the picture shows the two directions that differ most.

# %%
side = BACKBONES["mobilenetv2"].side
network = pooled(load_backbone("mobilenetv2", WEIGHTS, width=WIDTH), side)
cache = Path("runs", "features", cache_name(network, "squash"))
seen = {
    part: features(network, photos, cache, views=VIEWS if part == "train" else 1)
    for part, photos in parts.items()
}
numbers = {
    part: np.array([labels.index(p.label) for p in photos]) for part, photos in parts.items()
}
print("training photos, views, features:", seen["train"].shape)

# %%
vectors = seen["train"][:, 0]
directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][:2]
plots.show(
    plots.scatter((vectors - vectors.mean(0)) @ directions.T, numbers["train"], labels),
    "transfer_features",
)

# %% [markdown]
# **Conclusion**: it does. In two of 1,280 directions the forests already stand apart; buildings and
# streets lie together, and so do glaciers, mountains and the sea. Those will be the mistakes.

# %% [markdown]
# ## How many photos does one need?
#
# **Question**: is it worth taking more photos? **Experiment**: a head, one dense layer on those
# features, is trained in seconds on some photos of each class, and asked about all of the
# validation photos.


# %%
def accuracy_with(count):
    """Validation accuracy of a head that has seen `count` photos of each class."""
    few = np.concatenate(
        [np.flatnonzero(numbers["train"] == number)[:count] for number in range(len(labels))]
    )
    checked = seen["validation"][:, 0], numbers["validation"]
    heads = fit_heads(seen["train"][few], numbers["train"][few], seed=0)
    head = heads[best_penalty(heads, *checked)]
    return metrics.accuracy(head.predict(checked[0], verbose=0), checked[1])


most = np.bincount(numbers["train"]).min()
needed = {count: accuracy_with(count) for count in [5, 10, 20, 40, 80] if 2 * count <= most}
needed |= {int(most): accuracy_with(most)}
plots.show(plots.growth(needed), "transfer_photos_needed")

# %% [markdown]
# **Conclusion**: five photos of each class are enough for 84 % here; from twenty on it is 88 to 90,
# and more photos bring no more. (Neighbouring points differ by chance: on some 220 validation
# photos the standard error of an accuracy is two points.) What is hard to tell apart in these
# features stays hard with more photos; then the features themselves must change.

# %% [markdown]
# ## The whole command
#
# The same again as `python -m training.transfer` does it: the head; then its last layers are tuned
# with it, which is kept only where the validation photos gain a point by it; then a temperature
# that makes the probabilities honest. With all of that chosen, it is trained once more on the
# validation photos too, and a bundle written in all formats, checked against each other. The
# features are not computed again.

# %%
BUNDLE = Path("bundles", PHOTOS.name)
figures, pictures = transfer(PHOTOS, BUNDLE, weights=WEIGHTS, width=WIDTH, saved_model=True)
pd.Series(as_lines(figures)).drop("all of it took").to_frame("on the test photos")

# %%
pd.DataFrame(figures["classes"]).set_index("label").assign(
    right=lambda table: 100 * table["right"],
    low=lambda table: 100 * table["low"],
    high=lambda table: 100 * table["high"],
)

# %% [markdown]
# The interval is where the true accuracy lies with 95 % confidence: so few test photos cannot say
# it more precisely. The command also writes a page, `runs/report-…/report.html`, with these
# pictures.

# %%
for caption, picture in pictures.items():
    display(plots.show(picture, f"transfer_{caption.lower()}"))

# %% [markdown]
# **Conclusion**: with all layers frozen, 89 % of the validation photos are right. Tuning ends where
# it began, so it is not kept: for scenes, what ImageNet has taught is good enough. Of the test
# photos 90 % are classified rightly. The mistakes are where the picture of the features had put
# them, and some are no mistakes: a glacier on a mountain is both. The curve of rejection says what
# the score is not: it orders photos by how familiar they are, and the less familiar ones are only a
# little more often wrong. Which answer to doubt among the classes, the probability tells better.

# %% [markdown]
# ## None of these
#
# Softmax divides its belief among the classes that there are; ask it about a frog and it names
# one. The bundle's network therefore returns a second number, how far the photo lies from those it
# was trained on, and below the threshold that 95 % of the validation photos reach, the answer is
# marked as uncertain.

# %%
client = create_app(Settings(models=(BUNDLE,))).test_client()
frog = Path("rest_api", "frog.jpg").read_bytes()
answer = client.post("/predict?top=2", data=frog, content_type="image/jpeg").get_json()
print(answer)
print("the score is", load_bundle(BUNDLE).score)

# %% [markdown]
# Serve it: `python rest_api/app.py --model bundles/…`. How its formats compare is in
# [prediction.ipynb](prediction.ipynb).
