import pickle

import numpy as np
import pytest

from training.cifar10 import data
from training.cifar10.data import DataError, load_cifar10, read_batch, split_validation


def test_official_files_load_as_rgb_images(small_cifar):
    (images, labels), (test_images, test_labels) = load_cifar10(small_cifar)
    assert images.shape == (200, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (200,)
    assert test_images.shape == (40, 32, 32, 3)
    raw = pickle.loads(
        (small_cifar / "cifar-10-batches-py" / "test_batch").read_bytes(), encoding="bytes"
    )
    red, green, blue = raw[b"data"][7].reshape(3, 32, 32)
    np.testing.assert_array_equal(test_images[7], np.stack([red, green, blue], axis=-1))
    assert test_labels.tolist() == raw[b"labels"]


def test_directory_may_be_the_batches_folder_itself(small_cifar):
    inner = load_cifar10(small_cifar / "cifar-10-batches-py")
    np.testing.assert_array_equal(inner[0][0], load_cifar10(small_cifar)[0][0])


def test_directory_comes_from_the_environment(small_cifar, monkeypatch):
    monkeypatch.setenv("CIFAR10_DIR", str(small_cifar))
    assert len(load_cifar10()[0][0]) == 200


def test_missing_file_is_named_with_what_to_do(small_cifar):
    (small_cifar / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3 is missing.*CIFAR10_DIR"):
        load_cifar10(small_cifar)


@pytest.mark.parametrize("change", [lambda whole: whole[:5000], lambda _: b"<html>404</html>"])
def test_truncated_or_wrong_file_is_named(small_cifar, change):
    path = small_cifar / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"data_batch_2 is not a complete CIFAR-10 batch"):
        load_cifar10(small_cifar)


def test_wrong_shape_is_named(small_cifar):
    path = small_cifar / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(pickle.dumps({b"data": np.zeros((40, 784), np.uint8), b"labels": [0] * 40}))
    with pytest.raises(DataError, match=r"data_batch_4 holds pixels of shape \(40, 784\)"):
        load_cifar10(small_cifar)


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a directory"):
        load_cifar10(tmp_path / "nowhere")


def test_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(DataError, match=r"refuses to load builtins\.print"):
        read_batch(tmp_path / "batch")


def test_failed_download_says_what_to_do(monkeypatch):
    import keras

    def offline():
        raise Exception("URL fetch failure")

    monkeypatch.setenv("CIFAR10_DIR", "")  # as Compose sets what is not set
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", offline)
    with pytest.raises(DataError, match=r"URL fetch failure.*CIFAR10_DIR"):
        load_cifar10()


def test_split_is_stratified_disjoint_and_fixed():
    labels = np.arange(50_000) % 10
    images = np.arange(50_000)  # stands for the images: shows which went where
    (train_images, train_labels), (validation_images, validation_labels) = split_validation(
        images, labels
    )
    assert np.bincount(train_labels).tolist() == [4_500] * 10
    assert np.bincount(validation_labels).tolist() == [500] * 10
    assert sorted([*train_images, *validation_images]) == images.tolist()
    np.testing.assert_array_equal(split_validation(images, labels)[1][0], validation_images)


def test_smaller_part_has_an_image_of_each_class_at_least():
    labels = np.arange(200) % 10
    (_, train_labels), (_, held_out) = split_validation(labels, labels, 1_000)
    assert np.bincount(held_out).tolist() == [1] * 10
    assert len(train_labels) == 190


def test_real_cifar10_has_the_constants_that_the_networks_normalise_by(real_cifar):
    (images, labels), (test_images, _) = load_cifar10(real_cifar)
    assert images.shape == (50_000, 32, 32, 3)
    assert test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(labels).tolist() == [5_000] * 10
    np.testing.assert_allclose(images.mean((0, 1, 2)), data.CIFAR10_MEAN, atol=1e-3)
    np.testing.assert_allclose(images.std((0, 1, 2)), data.CIFAR10_STD, atol=1e-3)
