"""The page at `/` in a real browser, as people use it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, rename, server
from training.export import write_formats, write_manifest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """A server with three models: one is never sure, to one nothing is in distribution."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(DEFAULT_MODEL, folder / "doubter")
    rename(folder / "doubter", "doubter", uncertainty={"threshold": 1})
    bundle_with_score(folder / "stranger", threshold=1e6)
    models = ("--model", str(DEFAULT_MODEL), "--model", str(folder))
    with server("--workers", "1", *models) as (_, port):
        yield f"http://127.0.0.1:{port}"


def bundle_with_score(folder: Path, threshold: float) -> None:
    """A bundle whose network returns beside the probabilities how bright an image is."""
    images = keras.Input((32, 32, 3))
    brightness = keras.ops.mean(images, (1, 2, 3))
    probabilities = keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(images))
    folder.mkdir()
    write_formats(keras.Model(images, [probabilities, brightness]), folder)
    description = {
        "name": folder.name,
        "version": "1",
        "labels": ["this", "that"],
        "input_size": 32,
        "views": [{"resize": "letterbox"}],
        "ood": {"score": "brightness", "threshold": threshold},
    }
    write_manifest(folder, description)


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    """The page, opened; any error in its console fails the test."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.goto(address)
    yield page
    context.close()
    # Chromium itself reports answers of 4xx, and the requests that a test aborts.
    assert not [text for text in errors if not text.startswith("Failed to load resource")]


def test_picked_picture_is_classified(page):
    page.set_input_files("#files", FROG)
    expect(page.get_by_role("button", name="Classify")).to_be_enabled()
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text("frog")
    assert page.locator(".bars li").count() == 5
    expect(page.locator(".percent").first).to_have_text(re.compile(r"^9\d\.\d %$"))
    assert page.locator("progress").first.get_attribute("value").startswith("0.9")
    assert page.locator(".card img").evaluate("image => image.naturalWidth") > 0


def test_many_files_are_answered_each_and_errors_in_the_words_of_the_api(page, tmp_path):
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "blue.png")
    (tmp_path / "no image.txt").write_text("hello")
    page.set_input_files("#files", [FROG, tmp_path / "blue.png", tmp_path / "no image.txt"])
    expect(page.locator("#status")).to_have_text("3 pictures")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#status")).to_have_text("Done: 3 pictures")
    verdicts = page.locator(".verdict")
    expect(verdicts.nth(0)).to_have_text("frog")
    expect(verdicts.nth(2)).to_contain_text("not an image in one of the formats JPEG, PNG")
    expect(verdicts.nth(2)).to_have_class(re.compile("failed"))
    assert page.locator(".card").nth(1).locator(".bars li").count() == 5


def drop(page: Page, event: str, target: str, source: Path) -> None:
    """Let the browser drop or paste a file, as a person's hand does."""
    page.evaluate(
        """([event, target, bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
            const init = { bubbles: true, cancelable: true };
            const happening = event === "paste"
                ? new ClipboardEvent(event, { ...init, clipboardData: data })
                : new DragEvent(event, { ...init, dataTransfer: data });
            document.querySelector(target).dispatchEvent(happening);
        }""",
        [event, target, list(source.read_bytes()), source.name],
    )


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropped_or_pasted_picture_is_taken(page, event):
    drop(page, event, "#drop", FROG)
    expect(page.locator(".name")).to_have_text("frog.jpg")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text("frog")


def test_everything_can_be_done_by_keyboard(page):
    page.set_input_files("#files", FROG)
    page.locator("#files").focus()
    for _ in range(5):  # camera, model, classify
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "classify":
            break
    page.keyboard.press("Enter")
    expect(page.locator(".verdict")).to_have_text("frog")
    page.get_by_role("button", name="Remove frog.jpg").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "files"


def test_model_picker_asks_the_chosen_model_which_may_not_be_sure(page):
    page.get_by_label("Model").select_option("doubter")
    page.set_input_files("#files", FROG)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text(re.compile("^Not sure: frog or [a-z]+$"))
    expect(page.locator("#curl")).to_contain_text("model=doubter")


def test_photo_of_nothing_that_the_model_knows_is_none_of_its_classes(page):
    page.get_by_label("Model").select_option("stranger")
    page.set_input_files("#files", FROG)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text("None of these")


def test_curl_line_is_copied_and_names_the_files(page, address):
    page.set_input_files("#files", FROG)
    page.get_by_role("button", name="Copy").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("curl -X POST -F image=@frog.jpg ")
    assert f"{address}/predict?top=5" in copied


def test_it_says_when_the_server_cannot_be_reached(page):
    page.set_input_files("#files", FROG)
    page.route("**/predict*", lambda route: route.abort())
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text(re.compile("cannot be reached"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(page, scheme, tmp_path):
    page.emulate_media(color_scheme=scheme)
    (tmp_path / "no image.txt").write_text("hello")
    page.set_input_files("#files", [FROG, tmp_path / "no image.txt"])
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#status")).to_have_text("Done: 2 pictures")
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_page_fits_a_small_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.set_input_files("#files", FROG)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text("frog")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_documentation_page_works_without_the_internet(page, address):
    page.context.route(lambda url: not url.startswith(address), lambda route: route.abort("failed"))
    page.goto(f"{address}/docs")
    expect(page.get_by_text("/predict").first).to_be_visible()
    expect(page.get_by_text("Classify one image, or several.")).to_be_visible()


@pytest.fixture(scope="module")
def guarded_address(tmp_path_factory) -> Iterator[str]:
    """A server of two models that wants a key, as a browser on the LAN sees it: by plain HTTP."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text("open-sesame")
    shutil.copytree(DEFAULT_MODEL, folder / "models" / "other")
    rename(folder / "models" / "other", "other")
    models = ("--model", str(DEFAULT_MODEL), "--model", str(folder / "models"))
    with server("--workers", "1", "--api-keys", str(folder / "keys"), *models) as (_, port):
        yield f"http://lan.test:{port}"


@pytest.fixture
def guarded_page(browser, guarded_address) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(guarded_address)
    yield page
    context.close()


def test_page_of_a_guarded_server_asks_for_the_key_then_offers_its_models(guarded_page):
    page = guarded_page
    expect(page.locator("#status")).to_have_text("Enter the API key of this server.")
    expect(page.get_by_label("Model")).to_be_hidden()
    page.set_input_files("#files", FROG)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text("Enter the API key of this server.")
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Tab")
    expect(page.locator("#status")).to_have_text("This API key is not valid.")
    page.get_by_label("API key").fill("open-sesame")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Model")).to_be_visible()
    page.get_by_label("Model").select_option("other")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".verdict")).to_have_text("frog")


def test_curl_line_is_copied_on_a_page_without_https(guarded_page):
    page = guarded_page
    assert page.evaluate("navigator.clipboard") is None
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#status")).to_have_text("Copied")
    page.locator("#key-row").evaluate("row => row.hidden = false")
    page.get_by_label("API key").focus()
    page.keyboard.press("Control+V")
    assert page.get_by_label("API key").input_value().startswith("curl -X POST")


def test_documentation_of_a_guarded_server_has_a_place_for_the_key(guarded_page, guarded_address):
    page = guarded_page
    page.goto(f"{guarded_address}/docs")
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".auth-container input").first.fill("open-sesame")
    page.get_by_role("button", name="Apply credentials").first.click()
    page.get_by_role("button", name="Close").last.click()
    page.locator('[data-path="/models"]').click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    status = page.locator(".live-responses-table tbody .response-col_status").first
    expect(status).to_contain_text("200")
