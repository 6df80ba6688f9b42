"""A folder of photos in, a served classifier out."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import applications
from PIL import Image

from rest_api.app import create_app
from rest_api.bundle import View, load_bundle
from rest_api.classifier import LoadedModel, Prediction, load_model
from rest_api.engine import load_engine
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import FROG, coloured, error_of, picture, small_backbone
from training import explanations
from training import transfer as command
from training.checkpoint import RunError
from training.explanations import faithful
from training.export import ExportError
from training.ood import mahalanobis
from training.photos import features as features_module
from training.photos import head, transfer, tuning
from training.photos.backbones import BACKBONES, DEFAULT, WeightsError, load_backbone
from training.photos.features import (
    BATCH,
    cache_name,
    compute,
    features,
    pooled,
    read_cache,
    served,
    view_of,
)
from training.photos.inspect import PhotosError, survey

SIDE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes that their colour tells apart, 40 photos each."""
    folder = tmp_path_factory.mktemp("photos")
    for channel, label in enumerate(("red", "green")):
        (folder / label).mkdir()
        for i in range(40):
            image = Image.fromarray(coloured(100 * channel + i, channel))
            image.save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def result(photos, tmp_path_factory):
    """A classifier trained on them."""
    folder = tmp_path_factory.mktemp("transfer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "load_backbone", small_backbone)
        figures, _ = transfer.transfer(
            photos,
            folder / "bundle",
            image_size=SIDE,
            tuning=False,
            saved_model=True,
            runs=folder / "runs",
        )
    return figures, folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != DEFAULT])
def test_backbone_contains_its_own_preprocessing(name):
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.float32)
    network = load_backbone(name, "random")
    preprocess = getattr(applications, BACKBONES[name].module).preprocess_input
    core, preprocessed = network.layers[-1], preprocess(images.copy())
    if np.array_equal(preprocessed, images):  # Keras has it in the network
        scaling = keras.layers.Rescaling, keras.layers.Normalization
        assert any(isinstance(layer, scaling) for layer in core.layers)
    np.testing.assert_allclose(network(images), core(preprocessed), atol=1e-5)


def test_features_of_random_weights_do_not_vanish():
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.float32)
    maps = np.asarray(load_backbone("mobilenetv2", "random")(images))
    assert maps.std(0).mean() > 0.01


def test_weights_that_cannot_be_had_are_explained(tmp_path, monkeypatch):
    def no_internet(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", no_internet)
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*Name or service.*--weights"):
        load_backbone("mobilenetv2")
    (tmp_path / "other.h5").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"does not fit mobilenetv2.*--width"):
        load_backbone("mobilenetv2", str(tmp_path / "other.h5"))
    with pytest.raises(WeightsError, match=r"absent\.h5 does not exist"):
        load_backbone("mobilenetv2", str(tmp_path / "absent.h5"))


def test_features_are_computed_once_for_each_content(photos, tmp_path, monkeypatch):
    network = pooled(small_backbone(), SIDE)
    some = survey(photos).photos[:40]
    cache = tmp_path / cache_name(network, "stretch")
    first = features(network, some[:30], cache, views=3)
    assert first.shape == (30, 3, 24)

    computed = []
    original = view_of
    monkeypatch.setattr(
        "training.photos.features.view_of",
        lambda photo, *rest: computed.append(photo) or original(photo, *rest),
    )
    again = features(network, some, cache, views=3)
    np.testing.assert_array_equal(again[:30], first)
    assert {photo.digest for photo in computed} == {photo.digest for photo in some[30:]}


def test_features_are_saved_from_time_to_time_whether_or_not_a_bar_is_shown(
    photos, tmp_path, monkeypatch, capfd
):
    network, some, saved = pooled(small_backbone(), SIDE), survey(photos).photos[:40], []
    monkeypatch.setattr(features_module, "SAVE_EVERY", 100)
    monkeypatch.setattr(features_module, "write_cache", lambda _, known: saved.append(len(known)))
    features(network, some, tmp_path / "features.npz", views=5)
    assert saved == [128, 200]  # batches of 32, and the end
    assert capfd.readouterr().err == ""


def test_interruption_keeps_the_features_that_are_there(photos, tmp_path):
    network = pooled(small_backbone(), SIDE)
    some, cache = survey(photos).photos[:40], tmp_path / "features.npz"

    def interrupted(*arguments):
        yield next(compute(*arguments))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features(network, some, cache, compute=interrupted)
    assert len(read_cache(cache, 24)) == BATCH


def test_unusable_cache_is_computed_anew(photos, tmp_path):
    network = pooled(small_backbone(), SIDE)
    some, cache = survey(photos).photos[:5], tmp_path / "features.npz"
    first = features(network, some, cache)
    with np.load(cache) as stored:
        keys, vectors = stored["keys"], stored["vectors"]
    whole = cache.read_bytes()
    for content in (whole[:500], b"", b"text"):
        cache.write_bytes(content)
        np.testing.assert_array_equal(features(network, some, cache), first)
    for odd in (vectors[:, :7], vectors[:3], np.full_like(vectors, np.nan), vectors.astype(str)):
        np.savez(cache, keys=keys, vectors=odd)
        np.testing.assert_array_equal(features(network, some, cache), first)


def test_other_weights_or_policies_have_other_caches():
    keras.utils.set_random_seed(0)
    one, other = (
        pooled(load_backbone("mobilenetv2", "random", width=0.35), SIDE) for _ in range(2)
    )
    assert cache_name(one, "stretch") == cache_name(one, "stretch")
    assert (
        len(
            {cache_name(one, "stretch"), cache_name(one, "letterbox"), cache_name(other, "stretch")}
        )
        == 3
    )


def scores_of(
    fitted_on: np.ndarray, class_ids: np.ndarray, *others: np.ndarray
) -> list[np.ndarray]:
    """The Mahalanobis scores of features (N, D), and of others."""
    inputs, logits = keras.Input(fitted_on.shape[1:]), keras.Input((2,))
    network = keras.Model([inputs, logits], mahalanobis(fitted_on, class_ids)(inputs, logits))
    return [np.asarray(network([x, x[:, :2]])) for x in (fitted_on, *others)]


def test_mahalanobis_is_that_of_numpy():
    rng = np.random.default_rng(0)
    class_ids = rng.integers(0, 3, 200)
    known = (rng.normal(size=(200, 8)) * range(1, 9) + 9 * np.eye(3, 8)[class_ids]).astype(
        "float32"
    )
    x = rng.normal(size=(50, 8)).astype("float32")
    _, scores = scores_of(known, class_ids, x)

    known, x = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (known, x))
    means = np.stack([known[class_ids == each].mean(0) for each in range(3)])
    within = known - means[class_ids]
    outer = within[:, :, None] * within[:, None]
    empirical, isotropic = outer.mean(0), np.eye(8) * np.square(within).mean()
    error = np.square(outer - empirical).sum((1, 2)).mean() / 200
    shrinkage = error / np.square(empirical - isotropic).sum()
    variances, directions = np.linalg.eigh((1 - shrinkage) * empirical + shrinkage * isotropic)
    variances[:4] = variances[:4].mean()  # one variance for all but the principal directions
    apart = (x[:, None] - means) @ directions  # (50, 3, 8)
    distances = (np.square(apart) / variances).sum(-1)
    np.testing.assert_allclose(scores, -distances.min(1), rtol=1e-3)


def test_how_strong_features_are_does_not_count():
    rng = np.random.default_rng(0)
    class_ids = rng.integers(0, 2, 60)
    known = (rng.normal(size=(60, 20)) + 3 * np.eye(2, 20)[class_ids]).astype("float32")
    once, twice = scores_of(known, class_ids, 2 * known)
    np.testing.assert_allclose(twice, once, rtol=1e-3)


def test_few_photos_score_no_lower_than_new_ones_of_their_classes():
    rng = np.random.default_rng(0)

    def made(count: int) -> tuple[np.ndarray, np.ndarray]:
        class_ids = np.arange(count) % 2
        spread = 1 / np.arange(1, 601) ** 0.5  # of the features, like a backbone's
        centres = np.random.default_rng(1).normal(size=(2, 600)) * spread
        return (centres[class_ids] + rng.normal(size=(count, 600)) * spread).astype(
            "float32"
        ), class_ids

    (known, class_ids), (new, _) = made(80), made(400)
    other = np.concatenate([new[:, ::-1], -new])
    seen, unseen, ood = scores_of(known, class_ids, new, other)
    assert np.mean(seen >= np.quantile(unseen, 0.05)) > 0.9
    assert np.mean(ood >= np.quantile(unseen, 0.05)) < 0.1


@pytest.mark.slow
def test_heads_side_by_side_keep_each_its_own_penalty():
    rng = np.random.default_rng(0)
    class_ids = np.arange(1000) % 3
    vectors = (rng.normal(size=(1000, 8)) + 4 * np.eye(3, 8)[class_ids]).astype(np.float32)
    train, validation = (vectors[:900], class_ids[:900]), (vectors[900:], class_ids[900:])

    def fitted(*penalties: float) -> dict[float, keras.Model]:
        return head.fit_heads(train[0][:, None], train[1], 0, penalties)

    alone, both = fitted(0.01), fitted(1e3, 0.01)
    assert head.best_penalty(both, *validation) == 0.01
    logits = np.asarray(alone[0.01](validation[0]))
    assert (logits.argmax(1) == validation[1]).mean() > 0.8
    np.testing.assert_allclose(both[0.01](validation[0]), logits, atol=0.05)
    assert abs(np.asarray(both[1e3](validation[0]))).max() < 0.1 < abs(logits).max()


def test_tuning_takes_images_a_little_smaller_than_those_served():
    assert [tuning.tuning_size(size) for size in (32, 224, 256, 299)] == [32, 192, 224, 256]


@pytest.mark.slow
def test_classes_are_learnt_and_figures_reported(result):
    figures, folder = result
    assert figures["accuracy"] > 0.8
    low, high = figures["accuracy_interval"]
    assert low < figures["accuracy"] <= high
    manifest = load_bundle(folder / "bundle").manifest
    assert manifest["labels"] == ["green", "red"]
    assert manifest["input_size"] == SIDE
    assert manifest["ood"]["score"] == "mahalanobis"
    assert manifest["accuracy"]["images"] == figures["test_photos"]


@pytest.mark.slow
def test_bundle_is_served_with_nothing_else_to_do(result):
    _, folder = result
    client = create_app(Settings(models=(folder / "bundle",))).test_client()
    image = io.BytesIO()
    Image.fromarray(coloured(7, 0)).save(image, "PNG")
    answer = client.post("/predict", data=image.getvalue(), content_type="image/png").get_json()
    assert answer["predictions"][0]["label"] == "red"
    assert client.get("/models").get_json()["models"][0]["ood"]["score"] == "mahalanobis"


@pytest.mark.slow
def test_all_formats_and_the_saved_model_agree(result):
    import tensorflow as tf

    _, folder = result
    bundle = load_bundle(folder / "bundle")
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    reference = load_engine(bundle, "keras")(images)
    litert = load_engine(bundle, "litert-float32")(images)
    np.testing.assert_allclose(litert.probabilities, reference.probabilities, atol=1e-4)
    np.testing.assert_allclose(litert.scores, reference.scores, rtol=1e-3)
    saved = tf.saved_model.load(str(bundle.path / "saved_model"))
    probabilities, scores, *_ = saved.serve(images.astype(np.float32))
    np.testing.assert_allclose(probabilities, reference.probabilities, atol=1e-4)
    np.testing.assert_allclose(scores, reference.scores, rtol=1e-3)


@pytest.mark.slow
def test_maps_differ_by_as_much_as_the_logits_less_their_mean(result):
    _, folder = result
    bundle = replace(load_bundle(folder / "bundle"), explains=True)
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    outputs = load_engine(bundle, "keras")(images)
    logits = bundle.manifest["calibration"]["temperature"] * np.log(outputs.probabilities)
    logits -= logits.mean(1, keepdims=True)
    sums = outputs.maps.sum((1, 2))
    np.testing.assert_allclose(sums - sums[0], logits - logits[0], atol=1e-3)
    assert abs(sums - sums[0]).max() > 0.01


@pytest.mark.slow
def test_bundle_explains_itself_where_that_was_found_to_be_faithful(result, photos):
    _, folder = result
    bundle = load_bundle(folder / "bundle")
    assert bundle.explains == faithful(bundle, [photo.path for photo in survey(photos).photos])


@pytest.mark.parametrize(
    ("highest", "of_cells", "expected"),
    [(0.5, 0.2, True), (0.5, 0.3, False), (0.0, -0.1, False), (-0.1, -0.2, False)],
)
def test_explanations_are_offered_where_they_tell_twice_what_chance_does(
    monkeypatch, highest, of_cells, expected
):
    monkeypatch.setattr(explanations, "losses", lambda *_: [highest, of_cells])
    assert faithful(load_bundle(DEFAULT_MODEL), [FROG]) is expected


def test_photos_of_cameras_are_covered_at_a_smaller_size(tmp_path, monkeypatch):
    picture(0, (3000, 1500)).save(tmp_path / "photo.png")
    classify, seen = LoadedModel.classify, []

    def watched(model: LoadedModel, data: bytes, **options: bool) -> Prediction:
        with Image.open(io.BytesIO(data)) as image:
            seen.append(image.size)
        return classify(model, data, **options)

    monkeypatch.setattr(LoadedModel, "classify", watched)
    model = load_model(DEFAULT_MODEL)
    explanations.losses(tmp_path / "photo.png", model, np.random.default_rng(0))
    assert seen == [(1024, 512)] * 4


@pytest.mark.slow
def test_bundle_that_cannot_be_tried_is_not_written(photos, tmp_path, monkeypatch):
    def unreadable(*_: object) -> bool:
        raise PhotosError("a photo was removed meanwhile")

    monkeypatch.setattr(transfer, "load_backbone", small_backbone)
    monkeypatch.setattr(transfer, "faithful", unreadable)
    bundle = tmp_path / "bundles" / "mine"
    with pytest.raises(PhotosError, match="removed meanwhile"):
        transfer.transfer(photos, bundle, image_size=SIDE, tuning=False, runs=tmp_path / "runs")
    assert not list(bundle.parent.iterdir())


@pytest.mark.slow
def test_card_has_the_figures_of_the_report(result):
    figures, folder = result
    card = (folder / "bundle" / "CARD.md").read_text()
    assert "green, red" in card
    (row,) = (line for line in card.splitlines() if line.startswith("| right (accuracy) |"))
    low, high = figures["accuracy_interval"]
    assert (
        f"| {figures['test_photos']} | {figures['accuracy']:.1%} | {low:.1%} to {high:.1%}" in row
    )


@pytest.mark.slow
def test_report_is_one_page_that_needs_no_other_file(result):
    _, folder = result
    page = next(folder.glob("runs/report-bundle/report.html")).read_text()
    assert "95 % interval" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") >= 3
    assert re.search(r"coverage.*train [\d.]+%, validation [\d.]+%, test [\d.]+%", page)


@pytest.mark.slow
def test_pictures_like_the_background_and_plain_ones_are_none_of_these(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(transfer, "load_backbone", small_backbone)
    background = [tmp_path / "some", tmp_path / "more"]
    for number, folder in enumerate(background):
        folder.mkdir()
        for i in range(20):
            Image.fromarray(coloured(900 + 20 * number + i, 2)).save(folder / f"{i}.png")
    bundle = tmp_path / "bundle"
    options = {"image_size": SIDE, "tuning": False, "runs": tmp_path / "runs"}
    figures, _ = transfer.transfer(photos, bundle, background=background, **options)
    model = load_model(bundle)
    assert model.bundle.labels == ("green", "red")
    assert model.bundle.manifest["ood"]["score"] == "above background"
    assert figures["auroc"] > 0.8
    rows = {measure: n for measure, n, *_ in figures["rows"]}
    unseen = [int(rows[f"photos of other things, {name}: answered"]) for name in ("some", "more")]
    counts = model.bundle.manifest["training"]["background"]
    assert sum(unseen) == counts["test"]
    assert sum(counts.values()) == 40 + transfer.SYNTHETIC_PHOTOS
    assert f"{counts['train'] + counts['validation']} pictures of other things" in bundle.joinpath(
        "CARD.md"
    ).read_text(encoding="utf-8")
    grey = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(grey, "png")
    assert model.classify(grey.getvalue()).none_of_these


def test_synthetic_pictures_show_plain_colours_among_others(tmp_path):
    photos = transfer.synthetic_photos(tmp_path / "synthetic")
    assert len(photos) == len({photo.digest for photo in photos}) == transfer.SYNTHETIC_PHOTOS
    pixels = [np.asarray(Image.open(photo.path), float) for photo in photos]
    assert min(each.std((0, 1)).max() for each in pixels) == 0
    assert max(each.std((0, 1)).max() for each in pixels) > 80
    again = transfer.synthetic_photos(tmp_path / "again")
    assert [photo.digest for photo in again] == [photo.digest for photo in photos]


@pytest.mark.parametrize("inside", [".", "some"])
def test_folders_that_are_or_lie_in_another_are_refused(photos, tmp_path, inside):
    others = tmp_path / inside
    with pytest.raises(PhotosError, match=rf"^{tmp_path} lies in {others}|{others} lies in"):
        transfer.transfer(photos, tmp_path / "b", background=[tmp_path], others=[others])
    with pytest.raises(PhotosError, match=f"^{photos / 'red'} lies in {photos}. Give folders"):
        transfer.transfer(photos, tmp_path / "b", others=[photos / "red"])


def test_what_is_written_may_not_lie_among_the_photos(photos, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=rf"^{photos}/model would lie among the photos in {photos}"):
        transfer.transfer(photos, photos / "model")
    monkeypatch.chdir(photos)  # where runs/ would be
    with pytest.raises(RunError, match=f"^runs would lie among the photos in {photos}"):
        transfer.transfer(Path(), tmp_path / "b")


def test_photos_of_the_classes_are_refused_in_the_background(photos, tmp_path):
    for i in range(12):
        Image.fromarray(coloured(900 + i, 2)).save(tmp_path / f"{i}.png")
    _, dataset = transfer.gather(photos, [tmp_path], 0)
    assert len(dataset.background(*dataset.parts)) == 12
    with Image.open(photos / "red" / "3.png") as image:
        image.resize((192, 144)).save(tmp_path / "larger.png")
    (tmp_path / "same.png").write_bytes((photos / "green" / "5.png").read_bytes())
    with pytest.raises(PhotosError, match="2 near-duplicates of photos of the classes") as raised:
        transfer.gather(photos, [tmp_path], 0)
    pairs = {tuple(sorted(line.strip().split(", "))) for line in str(raised.value).split("\n")[1:]}
    ours = {"larger.png": photos / "red" / "3.png", "same.png": photos / "green" / "5.png"}
    assert pairs == {tuple(sorted([str(tmp_path / a), str(b)])) for a, b in ours.items()}


def task_of(photos: Path, runs: Path, seed: int = 0, *, fine_tune: bool = True) -> transfer.Task:
    """A task of the small backbone, on the split of seed 0."""
    _, dataset = transfer.gather(photos, [], 0)
    return transfer.Task(
        dataset, small_backbone(), SIDE, (View("stretch"),), fine_tune, 0.97, seed, runs
    )


def test_features_of_served_views_are_those_of_what_the_server_shows(photos, tmp_path):
    views = View("letterbox"), View("stretch", mirror=True), View("letterbox", mirror=True)
    task = replace(task_of(photos, tmp_path), views=views)
    some = task.dataset.photos("validation")[:5]
    shown = served(some, SIDE, views)
    expected = np.stack([np.asarray(task.network(view)) for view in shown], 1)
    np.testing.assert_allclose(task.served_features(some), expected, atol=2e-3)  # kept as float16


@pytest.mark.slow
def test_both_thresholds_are_fitted_on_the_mean_over_views(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "load_backbone", small_backbone)
    bundle = tmp_path / "bundle"
    views = View("stretch"), View("center_crop", mirror=True)
    figures, _ = transfer.transfer(
        photos, bundle, image_size=SIDE, views=views, tuning=False, runs=tmp_path / "runs"
    )
    model = load_model(bundle)
    assert model.bundle.views == views
    assert model.bundle.ood is not None
    assert model.bundle.threshold == 0  # too few photos to say
    parts = transfer.gather(photos, [], 0)[1].parts["validation"]
    answered = [not model.classify(photo.path.read_bytes()).uncertain for photo in parts]
    assert figures["true_positive_rate"]["validation"] == pytest.approx(np.mean(answered))


@pytest.fixture
def uncalibrated(monkeypatch) -> list:
    """Leave out thresholds, which cost a head for each fold; returns the heads if tuned."""
    tuned = []

    def calibrate_unseen(task: transfer.Task, penalty: float, head: keras.Model | None) -> tuple:
        tuned.append(head)
        return 1.0, {}

    monkeypatch.setattr(transfer, "calibrate_unseen", calibrate_unseen)
    return tuned


@pytest.mark.slow
def test_fine_tuning_that_harms_is_rejected(photos, tmp_path, monkeypatch, uncalibrated):
    monkeypatch.setattr(tuning, "EPOCHS", 2)
    monkeypatch.setattr(tuning, "LEARNING_RATE", 1.0)
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.float32)
    task = task_of(photos, tmp_path)
    selection = transfer.select(task)
    assert selection.interpolation == 0
    assert len(selection.history) == 2
    assert transfer.describe(task, selection, "small", 1.0)["training"]["tuned_epochs"] == 0
    frozen = task_of(photos, tmp_path, fine_tune=False)
    expected, *_ = transfer.fit(frozen, transfer.select(frozen))(images)
    probabilities, *_ = transfer.fit(task, selection)(images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    assert transfer.select(task).history == selection.history  # read, not trained again
    assert uncalibrated == [None] * 3


def test_background_to_fine_tune_on_is_no_larger_than_a_class_on_average(photos):
    _, dataset = transfer.gather(photos, [], 0)
    known = dataset.photos("train")
    others = [replace(photo, label=transfer.BACKGROUND) for photo in known]
    parts = dataset.parts | {"train": known + others}
    shown = replace(dataset, parts=parts).to_tune_on("train")
    assert shown[: len(known)] == known
    assert {photo.label for photo in shown[len(known) :]} == {transfer.BACKGROUND}
    assert len(shown) - len(known) == len(known) // len(dataset.labels) < len(others)


@pytest.mark.slow
def test_photos_of_the_classes_alone_decide_whether_fine_tuning_is_kept(
    photos, tmp_path, monkeypatch, uncalibrated
):
    def validate(network, photos, *_) -> tuple[float, float]:
        shown.append(photos)
        return 1.0, 0.5

    shown: list = []
    monkeypatch.setattr(tuning, "EPOCHS", 2)
    monkeypatch.setattr(tuning, "validate", validate)
    task = task_of(photos, tmp_path)
    parts = {
        part: [*some, *(replace(photo, label=transfer.BACKGROUND) for photo in some)]
        for part, some in task.dataset.parts.items()
    }
    transfer.select(replace(task, dataset=replace(task.dataset, parts=parts)))
    assert shown
    assert all(some == task.dataset.photos("validation") for some in shown)


def test_background_that_outweighs_the_right_class_is_no_mistake_in_validation(photos):
    """Its logit is not served: fine-tuning that lowers it has gained nothing."""
    logits = keras.layers.Dense(3, kernel_initializer="zeros")
    network = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), logits])
    network.compile()
    some = survey(photos).photos[:5]
    losses = []
    for background in (-9.0, 9.0):
        logits.bias.assign([1.0, 0.0, background])
        loss, accuracy = tuning.validate(network, some, np.zeros(5, int), 2, SIDE, "stretch")
        assert accuracy == 1
        losses.append(loss)
    assert losses[0] == losses[1]


def test_fine_tuning_is_not_continued_with_another_background(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "tune", lambda *arguments, **_: runs.append(arguments[-1]))
    runs: list[Path] = []
    task = task_of(photos, tmp_path)
    parts, known = task.dataset.parts, task.dataset.photos("train")
    for others in ([], known[:1], known[:2]):
        background = [replace(photo, label=transfer.BACKGROUND) for photo in others]
        dataset = replace(task.dataset, parts=parts | {"train": [*known, *background]})
        transfer.tune(replace(task, dataset=dataset), task.backbone, known, 0.1, 2)
    assert len(set(runs)) == 3


@pytest.mark.slow
def test_rejected_fine_tuning_is_not_drawn(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "load_backbone", small_backbone)
    monkeypatch.setattr(tuning, "EPOCHS", 2)
    for interpolation, drawn in ((0.0, False), (0.5, True)):
        monkeypatch.setattr(tuning, "best_interpolation", lambda *_, found=interpolation: found)
        _, drawings = transfer.transfer(photos, tmp_path / "bundle", image_size=SIDE, runs=tmp_path)
        assert ("Fine-tuning" in drawings) == drawn
        tuned = load_bundle(tmp_path / "bundle").manifest["training"]["tuned_epochs"]
        assert (tuned > 0) == drawn


def arrays_of(checkpoint: Path) -> dict[str, np.ndarray]:
    with np.load(checkpoint) as stored:
        return {name: stored[name] for name in stored.files if name.startswith("weights/")}


@pytest.mark.slow
@pytest.mark.usefixtures("uncalibrated")
def test_interrupted_tuning_ends_at_the_same_weights(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "EPOCHS", 3)
    saved = []

    def save_and_stop(*state, save=tuning.save_checkpoint):
        save(*state)
        saved.append(state)
        if len(saved) == 2:
            raise KeyboardInterrupt

    transfer.select(task_of(photos, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            transfer.select(task_of(photos, tmp_path / "cut"))
    transfer.select(task_of(photos, tmp_path / "cut"))
    whole, cut = (
        arrays_of(next(tmp_path.glob(f"{name}/tuning-*/checkpoint.npz")))
        for name in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(values, cut[name])


def test_tuning_begins_anew_where_others_choose_its_best_epoch_or_train_its_head(
    photos, tmp_path, monkeypatch
):
    runs = []
    monkeypatch.setattr(tuning, "tune", lambda *arguments, **_: runs.append(arguments[-1]) or [])
    task = task_of(photos, tmp_path)
    parts = task.dataset.parts
    other = replace(task.dataset, parts=parts | {"validation": parts["validation"][1:]})
    for dataset in (task.dataset, other):
        for validate in (lambda: (0.0, 0.0), None):
            some = replace(task, dataset=dataset)
            transfer.tune(some, some.network, parts["train"], 0.1, 1, validate)
    assert len(set(runs)) == 4


def test_seed_reseeds_fine_tuning(photos, tmp_path):
    _, dataset = transfer.gather(photos, [], 0)
    train = dataset.photos("train")
    targets = head.one_hot(dataset.class_ids(train))

    def first_batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return next(tuning.batches_of_epoch(train, targets, SIDE, "stretch", 0, seed))

    for one, same, other in zip(first_batch(0), first_batch(0), first_batch(1), strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)


def test_tuning_ends_at_the_weights_of_the_best_epoch(photos, tmp_path):
    network = keras.Sequential([pooled(small_backbone()), keras.layers.Dense(2)])
    _, dataset = transfer.gather(photos, [], 0)
    train = dataset.photos("train")
    shown = train, head.one_hot(dataset.class_ids(train)), SIDE, "stretch", tmp_path
    losses, weights = iter([2.0, 1.0, 3.0]), []

    def validate() -> tuple[float, float]:
        weights.append(network.get_weights())
        return next(losses), 0.5

    history = tuning.tune(network, *shown, seed=0, epochs=3, validate=validate)
    assert [row["val_loss"] for row in history] == [2, 1, 3]
    for value, expected in zip(network.get_weights(), weights[1], strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.slow
def test_thresholds_let_the_fraction_of_known_photos_pass_that_is_wanted(photos, tmp_path):
    task = task_of(photos, tmp_path, fine_tune=False)
    penalty = head.PENALTIES[0]
    thresholds = {}
    for coverage in (0.6, 0.97):
        _, said = transfer.calibrate_unseen(replace(task, coverage=coverage), penalty, None)
        assert said["ood"]["coverage"] == coverage
        thresholds[coverage] = said["ood"]["threshold"]
    assert thresholds[0.6] > thresholds[0.97]


@pytest.mark.parametrize("coverage", ["0", "1", "1.2", "nan", "most"])
def test_coverage_that_is_no_fraction_is_refused(monkeypatch, capsys, coverage):
    monkeypatch.setattr("sys.argv", ["transfer", "photos", "--coverage", coverage])
    with pytest.raises(SystemExit, match="2"):
        command.parse_arguments()
    assert "--coverage" in capsys.readouterr().err


@pytest.mark.slow
def test_final_network_is_trained_on_the_validation_photos_too(photos, tmp_path, monkeypatch):
    task, shown = task_of(photos, tmp_path, fine_tune=False), []

    def fit_heads(vectors, *options, original=head.fit_heads):
        shown.append(len(vectors))
        return original(vectors, *options)

    monkeypatch.setattr(head, "fit_heads", fit_heads)
    before = task.backbone.get_weights()
    selection = transfer.select(task)
    for value, expected in zip(task.backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    transfer.fit(task, selection)
    parts = task.dataset.parts
    both = len(parts["train"]) + len(parts["validation"])
    assert (shown[0], shown[-1]) == (len(parts["train"]), both)
    assert sum(both - each for each in shown[1:-1]) == both  # each photo is unseen once


def test_folds_hold_each_photo_once_and_near_duplicates_together(photos):
    found = [replace(p, group=p.group[:2]) for p in survey(photos).photos]  # some share a group
    folds = [transfer.apart(found, fold, 0) for fold in range(transfer.FOLDS)]
    assert all(len(seen) + len(unseen) == len(found) for seen, unseen in folds)
    unseen = [photo for _, inside in folds for photo in inside]
    assert sorted(p.digest for p in unseen) == sorted(p.digest for p in found)
    for seen, inside in folds:
        assert not {p.group for p in seen} & {p.group for p in inside}


def test_photos_of_which_no_fold_can_be_left_out_are_refused(photos, tmp_path):
    task = task_of(photos, tmp_path, fine_tune=False)
    alike = {
        part: [replace(photo, group=photo.label) for photo in some]
        for part, some in task.dataset.parts.items()
    }
    task = replace(task, dataset=replace(task.dataset, parts=alike))
    with pytest.raises(PhotosError, match=r"too few photos of a class differ.* Add photos"):
        transfer.calibrate_unseen(task, 0.1, None)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        (["--size", "64", "--no-tuning"], 75),
        (["--size", "80"], 92),  # tuned at 64
        (["--size", "91", "--compare", "mobilenetv2", "inceptionv3"], 92),
    ],
)
def test_size_that_is_too_small_for_the_backbone_is_refused(photos, monkeypatch, options, least):
    monkeypatch.setattr(
        "sys.argv", ["transfer", str(photos), "--backbone", "inceptionv3", *options]
    )
    monkeypatch.setattr(command, "train", lambda *_, **__: pytest.fail("it trains"))
    size = options[1]
    with pytest.raises(
        SystemExit, match=f"error: Images of {size} .* inceptionv3.*{least} or more"
    ):
        command.main()


def test_least_size_that_a_backbone_is_said_to_need_suffices():
    for name, backbone in BACKBONES.items():
        transfer.check_size(name, backbone.image_size, tune=True)
    transfer.check_size("inceptionv3", 92, tune=True)
    transfer.check_size("inceptionv3", 75, tune=False)
    network = load_backbone("inceptionv3", "random")
    assert network.compute_output_shape((1, 75, 75, 3))[1:3] == (1, 1)


def test_mixup_keeps_more_of_an_image_than_of_the_other():
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 200)] * 8)
    labels = np.eye(2, dtype=np.float32)[[0, 1] * 8]
    blended, targets = tuning.mixup(images, labels, np.random.default_rng(0))
    assert targets.argmax(1).tolist() == labels.argmax(1).tolist()
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(blended[:, 0, 0, 0], 200 * targets[:, 1], atol=1)
    assert (blended[:, 0, 0, 0] % 200 > 0).any()


@pytest.mark.slow
def test_few_photos_are_not_rejected_by_what_was_trained_on_them(photos, tmp_path, monkeypatch):
    def wide_backbone(*_: object, **__: object) -> keras.Model:
        """More channels than photos, like a real one."""
        keras.utils.set_random_seed(0)
        images = keras.Input((None, None, 3))
        scaled = keras.layers.Rescaling(1 / 127.5, -1)(images)
        return keras.Model(
            images, keras.layers.Conv2D(512, 7, strides=4, activation="relu")(scaled)
        )

    monkeypatch.setattr(transfer, "load_backbone", wide_backbone)
    figures, _ = transfer.transfer(
        photos, tmp_path / "bundle", image_size=SIDE, tuning=False, runs=tmp_path
    )
    assert all(rate >= 0.75 for rate in figures["true_positive_rate"].values())
    assert figures["true_positive_rate"]["train"] >= 0.9


def test_sizes_of_views_are_refused_where_photos_have_one_size(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["transfer", "photos", "--views", "stretch:40"])
    with pytest.raises(SystemExit):
        command.parse_arguments()
    assert "set the network's with --size" in capsys.readouterr().err


def test_command_says_what_to_serve_in_shell_words(monkeypatch, capsys):
    figures = dict.fromkeys(("accuracy", "calibration_error", "milliseconds", "megabytes"), 0.5)
    figures |= {"test_photos": 1, "seconds": 1.0, "accuracy_interval": (0, 1)}
    figures["true_positive_rate"] = {"test": 1.0}
    monkeypatch.setattr(transfer, "transfer", lambda *_, **__: (figures, {}))
    monkeypatch.setattr("sys.argv", ["transfer", "photos", "--output", "my bundles/cats"])
    command.main()
    assert capsys.readouterr().out.endswith("--model 'my bundles/cats'\n")


def test_command_refuses_a_cluster_that_is_not_there(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "load_backbone", small_backbone)
    for option in ([], ["--compare", DEFAULT]):
        arguments = ["transfer", str(photos), "--size", "32", "--cluster", "nowhere", *option]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit, match=r"^error: no Ray cluster answers at nowhere"):
            command.main()
    assert not (tmp_path / "bundles").exists()


def test_output_that_cannot_be_written_is_refused_before_anything_is_trained(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="file/bundle cannot be written: Not a directory"):
        transfer.transfer(photos / "absent", tmp_path / "file" / "bundle")


def test_directory_of_runs_that_cannot_be_written_is_refused_before_anything_is_trained(
    photos, tmp_path
):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/runs/ cannot be written: .*\. Start"):
        transfer.transfer(photos / "absent", tmp_path / "bundle", runs=tmp_path / "file" / "runs")


def test_unusable_files_of_other_things_are_named(photos, tmp_path, capsys):
    folder = tmp_path / "others"
    shutil.copytree(photos / "red", folder)
    (folder / "notes.txt").write_text("no photo")
    shutil.copy(folder / "7.png", folder / "copy.png")
    assert len(transfer.photos_of_nothing(folder)) == 40
    said = capsys.readouterr().out
    assert said.startswith(f"skipped: 2 of the files in {folder}:\n  {folder}/copy.png: a copy of")
    assert f"\n  {folder}/notes.txt: This is not an image" in said
    for photo in sorted(folder.glob("*.png"))[9:]:
        photo.unlink()
    with pytest.raises(
        PhotosError, match=rf"holds 9 photos, not 10 or more.\n(.|\n)*{folder}/notes"
    ):
        transfer.photos_of_nothing(folder)


def test_near_duplicates_of_photos_of_the_classes_do_not_count_as_other_things(
    photos, tmp_path, capsys
):
    _, dataset = transfer.gather(photos, [], seed=0)
    folder = tmp_path / "others"
    folder.mkdir()
    for file in sorted((photos / "red").iterdir())[:10]:
        Image.open(file).resize((80, 80)).save(folder / f"larger-{file.name}")
    with pytest.raises(PhotosError, match=f"^{folder} holds only near-duplicates of the other"):
        transfer.unseen_photos(folder, dataset)
    new = {f"{number}.png" for number in range(10)}
    for number, name in enumerate(sorted(new)):
        noise = np.random.default_rng(100 + number).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(noise).resize((60, 60)).save(folder / name)
    assert {photo.path.name for photo in transfer.unseen_photos(folder, dataset)} == new
    assert f"left out: 10 photos in {folder}" in capsys.readouterr().out


def test_weights_of_a_rejected_tuning_are_the_same_to_the_byte():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    start = [np.array([[-0.0], [1.0]], np.float32), np.zeros(1, np.float32)]
    tuned = [weights + 1 for weights in start]
    tuning.interpolate(network, start, tuned, 0)
    found = network.get_weights()
    assert [weights.tobytes() for weights in found] == [weights.tobytes() for weights in start]
    tuning.interpolate(network, start, tuned, 0.5)
    assert network.get_weights()[0].tolist() == [[0.5], [1.5]]


def test_backbone_that_is_named_twice_is_trained_once(monkeypatch, tmp_path):
    calls = []

    def train(photos: Path, destination: Path, **options: object) -> tuple[dict, Path]:
        calls.append((options["backbone"], destination))
        return figures, destination

    figures = dict.fromkeys(("accuracy", "calibration_error", "milliseconds", "megabytes"), 0.5)
    figures |= {"test_photos": 1, "seconds": 1.0, "accuracy_interval": (0, 1)}
    figures["true_positive_rate"] = {"test": 1.0}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "train", train)
    compared = ["--compare", "vgg16", "resnet50", "vgg16", "--output", "."]
    monkeypatch.setattr("sys.argv", ["transfer", "photos", *compared])
    command.main()
    names = ["vgg16", "resnet50"]
    assert calls == [(name, tmp_path.with_name(f"{tmp_path.name}-{name}")) for name in names]


@pytest.mark.parametrize("option", ["background", "others"])
def test_folder_of_other_things_that_does_not_exist_is_named(photos, tmp_path, option):
    absent = tmp_path / "absent"
    with pytest.raises(PhotosError, match=f"^{absent} is not a folder. Give one that holds photos"):
        transfer.transfer(photos, tmp_path / "bundle", **{option: [absent]})


@pytest.mark.slow
def test_unusable_input_is_refused_in_one_line(photos, tmp_path):
    (tmp_path / "only").mkdir()
    assert "it holds only 'only'" in error_of("training.transfer", tmp_path)
    absent = error_of("training.transfer", photos, "--weights", tmp_path / "absent.h5")
    assert absent.endswith("absent.h5 does not exist.")
