"""Where in a photo the network saw the class that it names."""

import numpy as np
import pytest
from PIL import Image

from rest_api.bundle import View
from rest_api.classifier import LoadedModel, load_model
from rest_api.explain import CANVAS, GRID, explain
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, ROOT, encode, post

CLASSIC = DEFAULT_MODEL.with_name("cifar10-classic")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(DEFAULT_MODEL)


def spot(rows: int, columns: int, at: tuple[int, int]) -> np.ndarray:
    found = np.zeros((rows, columns), np.float32)
    found[at] = 1
    return found


def centre(grid: np.ndarray) -> tuple[float, float]:
    """Row and column of the centre of mass, in shares of the height and width."""
    rows, columns = (np.arange(GRID) + 0.5) / GRID, (np.arange(GRID) + 0.5) / GRID
    return float(grid.sum(1) @ rows / grid.sum()), float(grid.sum(0) @ columns / grid.sum())


@pytest.mark.parametrize(
    ("view", "size", "row", "column"),
    [
        (View("stretch"), (400, 100), 1 / 6, 5 / 6),
        (View("stretch", mirror=True), (400, 100), 1 / 6, 1 / 6),
        # the square from 150 to 250 of 400 pixels
        (View("center_crop"), (400, 100), 1 / 6, (150 + 100 * 5 / 6) / 400),
        (View("center_crop", mirror=True), (100, 400), (150 + 100 / 6) / 400, 1 / 6),
    ],
)
def test_map_lies_where_the_view_was_cut_from(view, size, row, column):
    grid = explain([spot(3, 3, (0, 2))], [view], size)
    assert grid.shape == (GRID, GRID)
    assert (grid.min(), grid.max()) == (0, 1)
    assert centre(grid) == pytest.approx((row, column), abs=0.05)


def test_bars_of_a_letterbox_are_no_part_of_the_photo():
    in_the_bar, below_it = spot(8, 8, (0, 4)), spot(8, 8, (2, 4))
    grid = explain([in_the_bar + below_it], [View("letterbox")], (400, 200))
    assert centre(grid) == pytest.approx((0.5 / 4, 4.5 / 8), abs=0.05)


@pytest.mark.parametrize("size", [(2000, 20), (20, 2000), (65_000, 1)])
def test_crop_of_a_panorama_lies_in_its_middle(size):
    grid = explain([np.ones((3, 3), np.float32)], [View("center_crop")], size)
    assert (grid > 0).sum() == GRID  # a row or column
    assert centre(grid) == pytest.approx((0.5, 0.5), abs=0.5 / GRID)


def test_bars_of_a_panorama_are_not_laid_out(monkeypatch):
    sizes, resize = [], Image.Image.resize

    def noted(image, size, *args):
        sizes.append(size)
        return resize(image, size, *args)

    monkeypatch.setattr(Image.Image, "resize", noted)
    grid = explain([spot(8, 8, (4, 2))], [View("letterbox")], (65_000, 1))
    assert centre(grid) == pytest.approx((0.5, 2.5 / 8), abs=0.05)
    assert sizes == [(CANVAS, CANVAS)]


def test_what_speaks_against_the_class_counts_as_nothing():
    assert not explain([-np.ones((3, 3), np.float32)], [View("stretch")], (30, 30)).any()


def test_maps_of_all_views_are_added():
    views = View("stretch"), View("stretch", mirror=True)
    grid = explain([spot(2, 2, (0, 0)), spot(2, 2, (0, 0))], views, (50, 50))
    np.testing.assert_allclose(grid, grid[:, ::-1], atol=1e-6)


def test_object_is_found_where_it_is_pasted(model):
    """The frog on a wide grey ground, left or right."""
    with Image.open(FROG) as frog:
        small = frog.convert("RGB").resize((200, 200))
    columns = []
    for left in (0, 200):
        photo = Image.new("RGB", (400, 200), (128, 128, 128))
        photo.paste(small, (left, 0))
        explanation = model.classify(encode(photo), explained=True).explanation
        columns.append(centre(explanation)[1])
    assert columns[0] < 0.5 < columns[1]


def test_nothing_is_explained_unasked(model):
    assert model.classify(FROG.read_bytes()).explanation is None


def test_answer_explains_the_best_class_of_each_image(client):
    answer = post(client, FROG.read_bytes(), "?explain=true&top=2").get_json()
    assert answer["explanation"]["label"] == answer["predictions"][0]["label"] == "frog"
    grid = np.array(answer["explanation"]["grid"])
    assert grid.shape == (GRID, GRID)
    assert (grid.min(), grid.max()) == (0, 1)
    assert "explanation" not in post(client, FROG.read_bytes()).get_json()


def test_several_images_are_explained_one_by_one(client):
    files = [(FROG.open("rb"), "one.jpg"), (FROG.open("rb"), "two.jpg")]
    answer = client.post("/predict?explain=true", data={"image": files}).get_json()
    assert [len(each["explanation"]["grid"]) for each in answer["results"]] == [GRID, GRID]


def test_explain_takes_true_or_false_alone(client):
    refused = post(client, FROG.read_bytes(), "?explain=yes")
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (400, "invalid_explain")


def test_model_without_maps_says_that_it_cannot_explain():
    from rest_api.app import create_app
    from rest_api.settings import Settings

    client = create_app(Settings(models=(CLASSIC,))).test_client()
    assert client.get("/models").get_json()["models"][0]["explains"] is False
    refused = post(client, FROG.read_bytes(), "?explain=true")
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (400, "cannot_explain")
    assert refused.get_json()["error"]["message"].endswith("Models that can: none.")


@pytest.mark.slow
def test_covering_what_was_pointed_at_costs_twice_what_covering_at_random_does():
    from training.explanations import losses

    photos = ROOT.parent / "shared" / "photos" / "ten_classes"
    if not photos.exists():
        pytest.skip("needs photos of the ten classes in ../shared/photos/ten_classes")
    rng, model = np.random.default_rng(0), load_model(DEFAULT_MODEL)
    lost = np.mean([losses(each, model, rng) for each in sorted(photos.glob("*/*"))[::4]], axis=0)
    assert lost[0] > 2 * lost[1]
