"""Outliers: which images are trained on as none of the ten classes, and what is made of them."""

import pickle
from functools import partial

import keras
import numpy as np
import pytest

from training.augment import Augmentation, random_box, random_light
from training.cifar10 import outliers, recipes
from training.cifar10.data import DataError
from training.ood import log_odds
from training.synthetic import DRAWINGS, PATTERNS, collage, synthesise

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)


def test_cifar100_is_read_from_its_official_file(small_cifar100):
    content = pickle.loads((small_cifar100 / "cifar-100-python" / "train").read_bytes())
    expected = content[b"data"].reshape(200, 3, 32, 32).transpose(0, 2, 3, 1)
    for directory in (small_cifar100, small_cifar100 / "cifar-100-python"):
        images, labels = outliers.load_cifar100(directory)
        np.testing.assert_array_equal(images, expected)
        assert labels.tolist() == (np.arange(200) % 100).tolist()


def test_missing_or_damaged_file_is_named_in_one_line(small_cifar100, tmp_path):
    with pytest.raises(DataError, match=r"nowhere.train is missing\. Give .*--outliers"):
        outliers.load_cifar100(tmp_path / "nowhere")
    path = small_cifar100 / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a complete CIFAR-100 batch file"):
        outliers.load_cifar100(small_cifar100)


def test_classes_that_are_held_out_or_too_near_are_not_trained_on(small_cifar100):
    cifar100 = outliers.load_cifar100(small_cifar100)
    _, shown = outliers.shown(*cifar100)
    _, held_out = outliers.held_out(*cifar100)
    assert len(set(shown)) == 78
    assert len(set(held_out)) == 20
    assert not set(shown) & set(held_out)
    assert not {13, 58} & (set(shown) | set(held_out))  # bus and pickup_truck


def test_outliers_are_classes_beyond_the_ten(small_cifar100):
    images, labels = outliers.outliers(outliers.load_cifar100(small_cifar100))
    assert images.shape == (2 * 78 + 31, 32, 32, 3)
    assert labels.min() == 10
    assert (labels == outliers.SYNTHETIC).sum() == 31
    assert labels.max() + 1 == outliers.CLASSES


def test_synthetic_images_depend_on_the_seed_alone():
    kinds = *PATTERNS, *DRAWINGS, partial(collage, IMAGES)
    first, again, other = (synthesise(45, seed, kinds) for seed in (1, 1, 2))
    assert first.shape == (45, 32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()
    assert len(np.unique(first.reshape(45, -1), axis=0)) == 45


def test_log_odds_compare_the_ten_classes_with_all_others():
    logits = np.zeros((1, 110), np.float32)
    assert float(log_odds(logits, 10)[0]) == pytest.approx(np.log(10 / 100))
    logits[0, 3] = 9
    assert float(log_odds(logits, 10)[0]) > 0


def test_epoch_has_all_known_images_and_as_many_others_as_asked_for():
    known, others = (IMAGES[:100], np.arange(100)), (IMAGES[100:150], np.arange(200, 250))
    images, labels = outliers.draw(known, others, 20, epoch=0, seed=1)
    np.testing.assert_array_equal(images[:100], known[0])
    np.testing.assert_array_equal(labels[:100], known[1])
    assert len(images) == len(set(labels)) == 120
    np.testing.assert_array_equal(images[100:], IMAGES[100 + labels[100:] - 200])
    again, later = (outliers.draw(known, others, 20, epoch, seed=1)[1] for epoch in (0, 1))
    np.testing.assert_array_equal(again, labels)
    assert later[100:].tolist() != labels[100:].tolist()


def test_box_as_large_as_the_image_is_the_image():
    how = Augmentation(zoom=(1, 1.0001), unzoomed=1)
    np.testing.assert_array_equal(random_box(IMAGES, 32, how, np.random.default_rng(0)), IMAGES)


def test_unzoomed_box_moves_by_whole_pixels():
    how = Augmentation(zoom=(0.5, 0.6), unzoomed=1, crop=2)
    boxes = random_box(IMAGES, 32, how, np.random.default_rng(0))
    centres = IMAGES[:, 8:24, 8:24]
    places = {
        (y, x)
        for box, centre in zip(boxes, centres, strict=True)
        for y in range(-2, 3)
        for x in range(-2, 3)
        if (box[8 + y : 24 + y, 8 + x : 24 + x] == centre).all()
    }
    assert places == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_smaller_box_shows_its_part_larger():
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None] * 8, (64, 32, 32))
    ramp = np.stack([ramp] * 3, -1)
    for zoom, least, most in (((0.5, 0.5001), 0, 130), ((0.99, 1), 230, 249)):
        boxes = random_box(ramp, 24, Augmentation(zoom=zoom), np.random.default_rng(0))
        assert boxes.shape == (64, 24, 24, 3)
        heights = boxes.max((1, 2, 3)).astype(int) - boxes.min((1, 2, 3))
        assert ((heights >= least) & (heights <= most)).all()


def test_no_light_changes_nothing_and_some_light_each_image_otherwise():
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(random_light(IMAGES, 0, rng), IMAGES, atol=1e-3)
    same = np.repeat(IMAGES[:1], 20, 0)
    changed = random_light(same, 0.2, rng)
    assert changed.dtype == np.float32
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert len(np.unique(changed.mean((1, 2, 3)).round(2))) == 20


def test_street_has_an_output_for_each_kind_of_outlier_and_at_most_two_and_a_half_million_weights():
    network = recipes.load("street").network()
    assert network.output_shape == (None, outliers.CLASSES)
    assert network.count_params() < 2_500_000
    assert network(np.zeros((2, 32, 32, 3))).shape == (2, outliers.CLASSES)


def test_keras_downloads_cifar100_where_no_directory_is_given(monkeypatch):
    monkeypatch.delenv("CIFAR100_DIR", raising=False)
    labels = (np.arange(200) % 100)[:, None]
    monkeypatch.setattr(keras.datasets.cifar100, "load_data", lambda: ((IMAGES, labels), None))
    images, read = outliers.load_cifar100()
    np.testing.assert_array_equal(images, IMAGES)
    assert read.tolist() == labels.ravel().tolist()

    def unreachable():
        raise Exception("no network")

    monkeypatch.setattr(keras.datasets.cifar100, "load_data", unreachable)
    with pytest.raises(DataError, match="could not be downloaded: no network"):
        outliers.load_cifar100()
