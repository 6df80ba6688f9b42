from types import SimpleNamespace

import numpy as np
import pytest

from training import augment
from training.augment import Augmentation


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)


def test_flip_mirrors_only_the_chosen_images(images):
    chosen = np.arange(50) % 2 == 0
    flipped = augment.flip(images, chosen)
    np.testing.assert_array_equal(flipped[0], images[0, :, ::-1])
    np.testing.assert_array_equal(flipped[1], images[1])


def test_alternating_flip_shows_each_image_both_ways_in_two_epochs(rng):
    alternating = Augmentation(flip="alternating")
    first, second, third = (augment.flips(1000, alternating, epoch, 3, rng) for epoch in range(3))
    np.testing.assert_array_equal(first, ~second)
    np.testing.assert_array_equal(first, third)
    assert 400 < first.sum() < 600


def test_random_flip_mirrors_another_half_in_the_next_epoch(rng):
    random = Augmentation(flip="random")
    first, second = (augment.flips(1000, random, epoch, 3, rng) for epoch in range(2))
    assert 400 < first.sum() < 600
    assert 400 < (first ^ second).sum() < 600


def test_crop_equals_a_window_of_the_reflected_image(images, rng):
    cropped = augment.random_crop(images, 2, rng)
    assert cropped.shape == images.shape
    shifts = set()
    for before, after in zip(images, cropped, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), "reflect")
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(padded[y : y + 32, x : x + 32], after)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 15


def test_affine_of_nothing_is_the_image(images, rng):
    np.testing.assert_allclose(augment.random_affine(images, 0, 0, rng), images, atol=1e-2)


def test_affine_rotates_by_the_drawn_angle():
    class Fixed:  # a generator that draws 90 degrees and no shift
        def uniform(self, low, high, size):
            return np.full(size, 90.0 if np.ndim(size) == 0 else 0.0)

    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    rotated = augment.random_affine(image, 90, 0, Fixed())
    np.testing.assert_allclose(rotated[0], np.rot90(image[0], -1), atol=0.5)


def test_affine_shifts_by_up_to_the_fraction(rng):
    ramp = np.broadcast_to(np.arange(32.0)[:, None], (200, 32, 32))[..., None]
    moved = augment.random_affine(ramp, 0, 0.1, rng) - ramp
    offsets = moved[:, 16, 16, 0]
    assert 2.5 < abs(offsets).max() <= 3.21
    assert offsets.min() < 0 < offsets.max()


def test_cutout_greys_one_square(images, rng):
    cut = augment.cutout(images, 8, rng)
    changed = (cut != images).any(-1)
    assert (cut[changed] == 128).all()
    areas = changed.sum((1, 2))
    assert areas.max() <= 64
    assert areas.min() > 0
    assert np.median(areas) > 40


def test_resize_averages_what_it_merges():
    ramp = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8)[:, None, None], (2, 32, 32, 3))
    small = augment.resize(ramp, 16)
    assert small.shape == (2, 16, 16, 3)
    assert small[1, 2:-2, 5, 1].tolist() == [8 * i + 2 for i in range(2, 14)]


def test_resize_to_the_same_size_is_free(images):
    assert augment.resize(images, 32) is images


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop=2, rotation=10, shift=0.1),
        Augmentation(crop=2, zoom=(0.5, 1.1), aspect=1.3, unzoomed=0.2, light=0.2),
    ],
)
def test_augmentation_is_a_function_of_the_generator(images, augmentation):
    def augmented(seed: int) -> np.ndarray:
        return augment.augment(images, augmentation, np.random.default_rng(seed))

    np.testing.assert_array_equal(augmented(5), augmented(5))
    assert not np.array_equal(augmented(5), augmented(6))


def test_no_augmentation_changes_nothing(images, rng):
    assert augment.augment(images, Augmentation(), rng) is images
    assert not augment.flips(50, Augmentation(), 0, 0, rng).any()


def test_sharpness_changes_edges_by_up_to_its_strength_and_nothing_flat():
    step = np.repeat(np.array([50, 200], np.uint8), 4)[None, None, :, None]  # along the width
    images = np.broadcast_to(step, (2, 8, 8, 3))
    ends = SimpleNamespace(uniform=lambda low, high, size: np.resize([low, high], size))
    blurred, sharpened = augment.random_sharpness(images, 0.5, ends)
    contrasts = [np.abs(np.diff(each[4, :, 0])).max() for each in (blurred, sharpened)]
    assert contrasts == [112.5, 187.5]  # 150, of which a filter takes away half
    flat = np.full((2, 8, 8, 3), 70, np.uint8)
    np.testing.assert_array_equal(augment.random_sharpness(flat, 0.5, ends), flat)
