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
# # From a network that memorises to one that generalises
#
# A small convolutional network learns CIFAR-10's training images by heart and is then right on
# little more than three of four new ones. This notebook takes the cures one at a time, each
# against the same baseline for the same number of epochs, then the tricks of a recipe that gets
# to 94 % in minutes. Every figure was measured on 5,000 training images kept aside for
# validation; the test set waits for the final training, in
# [cifar10_model_training.ipynb](cifar10_model_training.ipynb).
#
# **To run it**: on your computer, also in VS Code, `pip install -r requirements.txt`, open this
# file and run all cells. In Colab, choose a GPU and first run, in a cell of its own,
# `!git clone ADDRESS . && pip install -q -r requirements.txt` with this repository's address (in
# an empty folder: `%rm -rf sample_data`). CIFAR-10 is downloaded on first use; to use files that
# you have, set `CIFAR10_DIR` to their folder.
#
# The trainings took hours on two CPU cores, so their records come with the repository and are
# loaded here; with `RERUN=1` in the environment everything is trained anew. On a GPU, set
# `EPOCHS=75` as well.

# %%
import numpy as np
import pandas as pd

from training import augment, plots
from training.cifar10 import records, study
from training.cifar10.data import LABELS, load_cifar10, split_validation

pd.options.display.float_format = "{:.1f}".format
pd.options.display.width = 120

# %% [markdown]
# ## The data
#
# 50,000 training and 10,000 test images of ten classes, 32 x 32 pixels. The same classes, the
# same size, every class equally often: the simplest data set that is not yet simple.

# %%
(images, labels), test = load_cifar10()
(train_images, train_labels), (val_images, val_labels) = split_validation(images, labels)
print(
    f"{len(train_images):,} to train on, {len(val_images):,} to validate, {len(test[0]):,} to test"
)
print("images of each class:", np.bincount(train_labels))

# %%
chosen = np.concatenate([np.flatnonzero(train_labels == label)[:4] for label in range(10)])
plots.show(
    plots.pictures(train_images[chosen], [LABELS[i] for i in train_labels[chosen]]), "samples"
)

# %% [markdown]
# What a network sees should be centred on zero and of unit size, or its first steps are badly
# scaled. Mean and standard deviation of each colour come from the training images alone; using
# those of the test set, as is often seen, would look at it before the end.

# %%
pd.DataFrame(
    {
        "mean": train_images.mean((0, 1, 2)),
        "standard deviation": train_images.std((0, 1, 2)),
    },
    index=["red", "green", "blue"],
)

# %% [markdown]
# **Augmentation** shows the network each image a little different every time: a truck is still a
# truck when it is mirrored, moved by three pixels or tilted by ten degrees. Five draws of each
# kind, beside the original:

# %%
rng = np.random.default_rng(0)
truck = train_images[np.flatnonzero(train_labels == LABELS.index("truck"))[2]]
copies = np.repeat(truck[None], 5, axis=0)  # (5, 32, 32, 3)
kinds = {
    "mirrored": augment.flip(copies, augment.random_flips(5, rng)),
    "shifted by 2": augment.random_crop(copies, 2, rng),
    "turned, shifted": augment.random_affine(copies, 10, 0.1, rng),
    "cutout": augment.cutout(copies, 8, rng),
}
rows = np.concatenate([np.concatenate([truck[None], drawn]) for drawn in kinds.values()])
titles = [title for kind in kinds for title in ["original", *[kind] * 5]]
plots.show(plots.pictures(rows, titles, columns=6), "augmentation")

# %% [markdown]
# ## Baselines: one, two, three blocks
#
# A VGG block is two 3 x 3 convolutions and a max-pool; the blocks have 32, 64 and 128 filters and
# a dense layer of 128 follows. **Question**: what does depth buy? **Experiment**: Adam at a
# constant rate, 12 epochs, no regularisation of any kind; the network of three blocks also with a
# second seed, to know how far chance alone moves a figure.

# %%
blocks = {
    "1 block": records.load("blocks-1", study.VARIANTS["blocks-1"]),
    "2 blocks": records.load("blocks-2", study.VARIANTS["blocks-2"]),
    "3 blocks": records.load("blocks-3", study.VARIANTS["blocks-3"]),
}
again = records.load("blocks-3", study.VARIANTS["blocks-3"], seed=1)
plots.show(plots.against_epochs({name: run.history for name, run in blocks.items()}), "baselines")


# %%
def figures(runs):
    """Accuracy in percent: the last epoch's, the best epoch's, and how much is memorised."""
    columns = {
        name: {
            "training": 100 * run.column("accuracy")[-1],
            "validation": 100 * run.column("val_accuracy")[-1],
            "best epoch": 100 * max(run.column("val_accuracy")),
        }
        for name, run in runs.items()
    }
    table = pd.DataFrame(columns).T
    table["gap"] = table["training"] - table["validation"]
    return table


table = figures(blocks | {"3 blocks, seed 1": again})
table["original, test"] = [66.6, 73.4, 76.5, np.nan]
table

# %% [markdown]
# **Conclusion**: every block adds, and all three networks learn their training images by heart:
# they end at 95 % and more of those and at 64, 71 and 75 % of new ones. The validation accuracy
# stands still after the sixth epoch, or falls, while the training accuracy goes on rising, so that
# longer training would not help. The original reports 66.6, 73.4 and 76.5 % of the test set after
# 75 to 100 epochs: two points above ours at the end, one above our best epochs.

# %% [markdown]
# ## One cure at a time
#
# **Question**: which remedy helps against memorising, by itself? **Experiment**: the network of
# three blocks with batch normalisation after each layer, or L2 (1e-4), or dropout (0.2, 0.3, 0.4,
# and 0.5 before the output), or augmentation (mirror, 10 degrees, a tenth of the side); nothing
# else changes, 12 epochs again.

# %%
names = {
    "batch-norm": "BatchNorm",
    "l2": "L2",
    "dropout": "dropout",
    "augmentation": "augmentation",
}
cures = {title: records.load(name, study.VARIANTS[name]) for name, title in names.items()}
compared = {"3 blocks": blocks["3 blocks"]} | cures
plots.show(plots.against_epochs({name: run.history for name, run in compared.items()}), "cures")

# %%
baseline = np.mean([run.column("val_accuracy")[-1] for run in (blocks["3 blocks"], again)]) * 100
table = figures(compared)
table["against baseline"] = table["validation"] - baseline
table["original, test"] = [76.5, 82.4, 75.6, 79.0, 84.7]
table["original, against its 76.5"] = table["original, test"] - 76.5
table

# %% [markdown]
# **Conclusion**: against the same baseline and after the same epochs, augmentation helps by far the
# most, as in the original, and it is the only cure after which training accuracy and validation
# accuracy are still one and still rise. The other three bring about two points each, where another
# seed moves the baseline by 0.7. This differs from the original in two places. Its L2 lost 0.9
# points against the 76.5 % that its own notebook printed (its text said that it gained, over a
# baseline of 70 % that was not shown); ours gains 1.8. Its batch normalisation gained 5.9; ours 1.7
# in 12 epochs: it learns faster, is ahead of all others after the first epoch, and memorises as
# completely as the baseline.
# Dropout is not at its end here: its training accuracy, measured with dropout at work, is below
# that of validation.

# %% [markdown]
# ## All together, and how to scale the pixels
#
# **Question**: do the cures add up, and does it matter how pixels enter the network?
# **Experiment**: all four at once, two seeds; then the same with pixels scaled to 0..1 instead of
# normalised by mean and standard deviation.

# %%
together = {
    "all cures": records.load("all-cures", study.VARIANTS["all-cures"]),
    "all cures, seed 1": records.load("all-cures", study.VARIANTS["all-cures"], seed=1),
    "all cures, 0..1": records.load("all-cures-scaled", study.VARIANTS["all-cures-scaled"]),
}
plots.show(plots.against_epochs({name: run.history for name, run in together.items()}), "together")

# %%
figures(together)

# %% [markdown]
# **Conclusion**: in 12 epochs they do not add up. All four together end below augmentation alone,
# and the training accuracy says why: the network does not memorise any more, it has not yet learnt.
# What holds memorising back holds learning back, and must be paid for with epochs: the same network
# gets to 91 % in 60 epochs with a falling learning rate
# ([cifar10_model_training.ipynb](cifar10_model_training.ipynb)). How the pixels are scaled makes no
# difference that could be seen: at a constant rate the validation accuracy jumps by two points and
# more from one epoch to the next, and batch normalisation scales anew what the first layer makes
# of them.

# %% [markdown]
# ## What the fast recipe adds
#
# airbench94 (Jordan 2024, [arXiv:2404.00498](https://arxiv.org/abs/2404.00498)) gets to 94 % in
# ten epochs. **Question**: which of its tricks carry it? **Experiment**: six epochs, the first four
# on images of 24 pixels; each trick taken away by itself, the rest left as it is. Accuracy with
# test-time augmentation, the mean over the image, its mirror image and both shifted by a pixel;
# `one view` is without.

# %%
tricks = {
    "all tricks": "fast",
    "without whitening": "fast-without-whitening",
    "without dirac initialisation": "fast-without-dirac",
    "without fast biases": "fast-without-bias-scale",
    "without lookahead": "fast-without-lookahead",
    "without label smoothing": "fast-without-label-smoothing",
    "random instead of alternating flip": "fast-with-random-flip",
}
runs = {title: records.load(name, study.VARIANTS[name]) for title, name in tricks.items()}

# %%
everything = runs["all tricks"].result["accuracy_tta"]
pd.DataFrame(
    {
        title: {
            "with test-time augmentation": 100 * run.result["accuracy_tta"],
            "against all tricks": 100 * (run.result["accuracy_tta"] - everything),
            "one view": 100 * run.result["accuracy"],
            "augmentation adds": 100 * (run.result["accuracy_tta"] - run.result["accuracy"]),
        }
        for title, run in runs.items()
    }
).T

# %%
error = np.sqrt(everything * (1 - everything) / len(val_labels))
accuracies = {title: run.result["accuracy_tta"] for title, run in runs.items()}
label = "validation accuracy after 6 epochs (%)"
plots.show(plots.bars(accuracies, "all tricks", error, label), "tricks")

# %% [markdown]
# **Conclusion**: three tricks carry the recipe, and all three are about the first seconds: whitened
# patches as a first layer that need not be learnt, convolutions that begin by handing their input
# on (dirac), and biases that learn 64 times as fast. Each is worth between one and two points
# after six epochs, several times the standard error (the grey band: 0.4 points on 5,000 images).
# Label smoothing and lookahead are worth about half a point and a third of one, which a single run
# cannot tell from chance; nor can it see any good in the alternating flip, which in Jordan's
# measurements pays over more epochs. Test-time augmentation adds between 0.1 and 1.0 points, less
# where the network was trained with all tricks. None of these cures overfitting: they are for
# learning as much in ten epochs as others do in a hundred.
#
# Both recipes are put together and trained to their end in
# [cifar10_model_training.ipynb](cifar10_model_training.ipynb).
