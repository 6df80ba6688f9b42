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
# A few hundred photos are too few to train a network from scratch. A network trained on ImageNet's
# 1.3 million images has already learnt edges, textures and parts; only the step from those to your
# classes has to be trained (transfer learning). Here the classes are six kinds of natural scenes
# (Intel Image Classification); for yours, `python -m training.transfer PHOTOS` does all of this in
# one command. This notebook shows what that command does, and why.
#
# **To run it** on your computer, also in VS Code: clone the repository, run
# `pip install -r requirements.txt` in it, open this file, set the environment variable `PHOTOS` to
# your folder, which holds one folder of photos per class, and run all cells. In Colab, first run
# this in a cell of its own; it asks for the address that the repository's page shows under *Code*:
#
# ```
# REPOSITORY = input("Address of the repository: ")
# !git clone {REPOSITORY} cifar10-cnn
# %cd cifar10-cnn
# %pip install -q -r requirements.txt
# %env PHOTOS=/content/photos
# ```
#
# Nothing else is downloaded: the backbone, EfficientNet-Lite0, comes with the repository.

# %%
import os
from pathlib import Path

if Path.cwd().name == "docs":  # editors start a notebook in its own folder
    os.chdir("..")

import numpy as np
import pandas as pd
from IPython.display import display

from rest_api.classifier import load_model
from training import metrics, plots
from training.photos.backbones import BACKBONES, DEFAULT, load_backbone
from training.photos.features import VIEWS, cache_name, features, pooled, view_of
from training.photos.head import best_penalty, fit_heads
from training.photos.inspect import inspect, report, split, survey
from training.photos.report import as_lines
from training.photos.transfer import transfer

PHOTOS = Path(os.environ.get("PHOTOS", "photos"))
pd.options.display.float_format = "{:.1f}".format
pd.options.display.max_colwidth = None

# %% [markdown]
# ## Inspect the photos
#
# Every file is decoded as the server would decode it. Exact copies are left out, and
# near-duplicates stay in the same part of the split: a test photo whose near-duplicate was trained
# on would make the test too easy. The part depends on the photo's content alone, so photos keep it
# when the folder grows.

# %%
found = survey(PHOTOS)
labels, parts = found.labels, split(found.photos)
print(report(found))

# %% [markdown]
# ## What the backbone sees
#
# **Question**: the network was trained on ImageNet's thousand classes, not on these. Do its
# features separate them? **Experiment**: the backbone, the network without its last layer, computes
# features of each photo once, and of a training photo in three more views: mirrored, and randomly
# cropped in another light. For the frog that the server is tested with, the four views are:

# %%
(frog,), _ = inspect([(Path("rest_api", "frog.jpg"), "frog")])
image_size = BACKBONES[DEFAULT].image_size
views = np.stack([view_of(frog, view, image_size, "stretch") for view in range(VIEWS)])
titles = ["as served", "mirrored", *["random crop"] * (VIEWS - 2)]
plots.show(plots.pictures(views, titles, columns=VIEWS), "transfer_views")

# %% [markdown]
# The features are the signed square roots of the means of the backbone's last 1,280 maps over the
# photo. The plot shows their first two principal components.

# %%
network = pooled(load_backbone(DEFAULT), image_size)
cache = Path("runs", "features", cache_name(network, "stretch"))
vectors = {
    part: features(network, photos, cache, views=VIEWS if part == "train" else 1)
    for part, photos in parts.items()
}
class_ids = {
    part: np.array([labels.index(p.label) for p in photos]) for part, photos in parts.items()
}
print("training photos, views, features:", vectors["train"].shape)

# %%
served = vectors["train"][:, 0]
components = np.linalg.svd(served - served.mean(0), full_matrices=False)[2][:2]
plots.show(
    plots.scatter((served - served.mean(0)) @ components.T, class_ids["train"], labels),
    "transfer_features",
)

# %% [markdown]
# **Conclusion**: they do. Two principal components are enough to separate the forests from what is
# built and from what is bare; buildings and streets overlap, and so do glaciers, mountains and the
# sea. Expect the mistakes there.

# %% [markdown]
# ## How many photos are needed?
#
# **Question**: is it worth taking more photos? **Experiment**: train a head, one dense layer on the
# features, which takes seconds, on some photos of each class, and measure it on all validation
# photos.


# %%
def accuracy_with(count):
    """Validation accuracy of a head trained on `count` photos of each class."""
    few = np.concatenate(
        [np.flatnonzero(class_ids["train"] == number)[:count] for number in range(len(labels))]
    )
    validation = vectors["validation"][:, 0], class_ids["validation"]
    heads = fit_heads(vectors["train"][few], class_ids["train"][few], seed=0)
    head = heads[best_penalty(heads, *validation)]
    return metrics.accuracy(head.predict(validation[0], verbose=0), validation[1])


most = np.bincount(class_ids["train"]).min()
needed = {count: accuracy_with(count) for count in [5, 10, 20, 40, 80] if 2 * count <= most}
needed |= {int(most): accuracy_with(most)}
plots.show(plots.growth(needed), "transfer_photos_needed")

# %% [markdown]
# **Conclusion**: five photos per class reach 83 % here, forty 88 %, and four times as many hardly
# more. (Neighbouring points differ by chance: on some 220 validation photos the standard error of
# an accuracy is two points.) Classes that overlap in these features stay hard with more photos; to
# separate them, the features themselves must change.

# %% [markdown]
# ## The whole command
#
# `python -m training.transfer` does the same and more. It trains the head; fine-tunes the
# backbone's last layers together with it, and keeps them only if validation accuracy gains a point;
# and fits a temperature, so that probabilities match accuracies. With these choices made, it trains
# once more on training and validation photos together and writes a bundle in all formats, checked
# against each other. The features come from the cache.

# %%
BUNDLE = Path("bundles", PHOTOS.name)
figures, drawings = transfer(PHOTOS, BUNDLE, saved_model=True)
model = load_model(BUNDLE)
lines = pd.Series(as_lines(figures)).drop(["one photo, on one thread", "total time"])
lines["epochs of fine-tuning that were kept"] = model.bundle.manifest["training"]["tuned_epochs"]
lines.to_frame("")

# %%
table = pd.DataFrame(figures["classes"]).set_index("label")
table[["right", "low", "high"]] *= 100
table.rename(columns={"right": "accuracy (%)", "photos": "test photos"})

# %% [markdown]
# `low` and `high` bound the accuracy of a class with 95 % confidence: so few test photos do not
# determine it more precisely. The command also writes a page, `runs/report-…/report.html`, with the
# plots below and the photos that were classified wrongly.

# %%
for caption, drawing in drawings.items():
    if caption != "Mistakes":
        display(plots.show(drawing, f"transfer_{caption.lower()}"))

# %% [markdown]
# **Conclusion**: with the backbone frozen, 89 % of the validation photos are right, fine-tuned 91:
# fine-tuning is kept. Of the test photos 91 % are right. The mistakes are where the principal
# components overlap, and some are debatable: a glacier on a mountain is both. The plot of coverage
# ranks the test photos by the out-of-distribution score that the next part explains. Selective
# accuracy hardly rises when the lowest scores are left out: a photo unlike the training photos is
# not much more often wrong. Which predictions to doubt among the classes, the probability shows
# better. Fine-tuning has its price: the head alone, `--no-tuning`, is right on 90 % of the test
# photos, but rejects photos of other things better
# ([your_own_photos.md](your_own_photos.md#how-good-it-is)). The shipped bundle is fine-tuned and
# was shown other things, too.

# %% [markdown]
# ## None of these
#
# Softmax distributes all probability among the classes that it has: shown a frog, this network must
# name a kind of scene. The bundle's network therefore returns a second number, an
# out-of-distribution score: how close the photo's features are to those of the training photos.
# Where it is below its threshold, the answer is "none of these". An answer is uncertain, too, where
# the best class's probability is below a threshold of its own; 97 % of the photos they are fitted
# on reach both.

# %%
print("the score is", model.bundle.ood.score)
prediction = model.classify(Path("rest_api", "frog.jpg").read_bytes(), top=2)
print(", ".join(f"{label} {probability:.0%}" for label, probability in prediction.classes))
print("none of these:", prediction.none_of_these)

# %% [markdown]
# Serve it: `python rest_api/app.py --model bundles/…`. How its formats compare is in
# [prediction.ipynb](prediction.ipynb).
