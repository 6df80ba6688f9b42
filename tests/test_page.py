"""The page at `/` in a real browser, as people use it."""

import csv
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import APIResponse, Locator, Page, Route, expect

from rest_api.bundle import load_bundle
from rest_api.classifier import load_model
from rest_api.forms import LEAST, percent
from rest_api.predict import csv_header
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import FROG, ROOT, rename, server
from training.export import write_formats, write_manifest

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000)  # milliseconds: beside other work, the server is slow

NAMES = ("first", "unsure", "ood")  # of the models
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
EXAMPLES = ROOT / "rest_api" / "static" / "examples"

CARD = """# Of doubts

| measure | photos | figure | 95 % interval |
|---|---:|---:|---:|
| photos: right of those answered (selective accuracy) | 3,170 | 94.7% | 94.3% to 95.1% |
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """A server with three models: one is never sure, to one nothing is in distribution."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(DEFAULT_MODEL, folder / "unsure")
    rename(folder / "unsure", "unsure", uncertainty={"threshold": 1})
    (folder / "unsure" / "CARD.md").write_text(CARD)
    bundle_with_score(folder / "ood", threshold=1e6)
    shutil.copytree(DEFAULT_MODEL, folder / "first", ignore=lambda *_: ["CARD.md"])
    measured = load_bundle(DEFAULT_MODEL).manifest["accuracy"]
    accuracy = {"litert-float32": 0.5, **measured}  # of a network that does not serve
    rename(folder / "first", DEFAULT_MODEL.name, accuracy=accuracy)
    models = [part for name in NAMES for part in ("--model", str(folder / name))]
    with server("--workers", "1", *models) as (_, port):
        yield f"http://127.0.0.1:{port}"


def bundle_with_score(folder: Path, threshold: float) -> None:
    """A bundle whose network returns beside the probabilities how bright an image is."""
    images = keras.Input((32, 32, 3))
    brightness = keras.ops.mean(images, (1, 2, 3))
    probabilities = keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(images))
    folder.mkdir()
    write_formats(keras.Model(images, [probabilities, brightness]), folder, 32)
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


def models_loaded(page: Page) -> None:
    """Wait until the page knows the models."""
    expect(page.locator("#more")).to_be_visible()


def choose(page: Page, *files: Path) -> None:
    """Choose pictures, and wait until all have their answers."""
    page.set_input_files("#files", list(files))
    expect(page.locator("#status")).to_have_text(re.compile("classified"))


def said(picture: Path) -> str:
    """What the default model says of a picture, as the page puts it."""
    ((label, share),) = load_model(DEFAULT_MODEL).classify(picture.read_bytes(), top=1).classes
    return f"{label}, {percent(share)}"


def bars(picture: Path) -> int:
    """How many of the best five classes have a bar: those of at least 0.05 %."""
    best = load_model(DEFAULT_MODEL).classify(picture.read_bytes(), top=5).classes
    return sum(share >= LEAST for _, share in best)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def test_chosen_picture_is_classified_at_once(page):
    choose(page, FROG)
    expect(page.locator(".verdict")).to_have_text(said(FROG))
    expect(page.locator(".took")).to_have_text(re.compile(r"^cifar10, \d+(\.\d)?\u00a0m?s$"))
    assert page.locator("progress").first.get_attribute("value").startswith("0.99")
    expect(page.locator(".card img")).to_have_js_property("naturalWidth", 256)
    image = page.locator(".card img").evaluate("i => [i.naturalWidth, i.width, i.height]")
    assert image[0] == 256
    assert min(image[1:]) > 150
    expect(page.locator("#status")).to_have_text(f"1 picture classified: {said(FROG)}")


def test_no_line_begins_with_a_unit(page):
    choose(page, FROG)
    expect(page.locator(".others")).to_contain_text("the other 9")
    shown = page.locator(".card").text_content()
    assert len(re.findall("\\d\u00a0(?:%|ms|s)", shown)) == 4  # headline, time, bar, the others
    assert not re.search(r"\d[ \n]+(%|ms|s)", shown)


def test_classes_of_no_probability_have_no_bars(page):
    choose(page, FROG)
    expect(page.locator(".bars li")).to_have_count(1)
    frog = load_model(DEFAULT_MODEL).classify(FROG.read_bytes(), top=1).classes[0][1]
    expect(page.locator(".others")).to_have_text(f"the other 9: {percent(1 - frog)}")


def test_answer_of_little_probability_is_only_probable(page):
    body = {
        "success": True,
        "predictions": [
            {"label": "cat", "probability": 0.7},
            {"label": "dog", "probability": 0.2},
            {"label": "frog", "probability": 0.0001},
        ],
        "uncertain": False,
        "none_of_these": False,
        "model": {"name": "cifar10", "version": "1"},
    }
    page.route("**/predict*", lambda route: route.fulfill(json=body))
    choose(page, FROG)
    expect(page.locator(".verdict")).to_have_text("Probably cat, 70.0 %")
    assert page.locator(".verdict").evaluate("e => getComputedStyle(e).fontWeight") == "400"
    expect(page.locator(".bars li")).to_have_count(2)


def test_many_files_are_answered_each_and_errors_in_the_words_of_the_api(page, tmp_path):
    (tmp_path / "no image.txt").write_text("hello")
    choose(page, FROG, EXAMPLES / "cat.jpg", tmp_path / "no image.txt")
    expect(page.locator("#status")).to_have_text("1 of 3 pictures could not be classified")
    verdicts = page.locator(".verdict")
    expect(verdicts.nth(0)).to_have_text(said(FROG))
    expect(verdicts.nth(1)).to_have_text(f"Probably {said(EXAMPLES / 'cat.jpg')}")
    expect(verdicts.nth(2)).to_contain_text("not an image in one of the formats JPEG, PNG")
    expect(page.locator(".card").nth(2)).to_have_class(re.compile("failed"))
    expect(page.locator(".card").nth(2).locator(".bars li")).to_have_count(0)
    expect(page.locator(".card").nth(1).locator(".bars li")).to_have_count(
        bars(EXAMPLES / "cat.jpg")
    )


def until_held(page: Page, held: list[Route], count: int) -> None:
    """Wait until so many requests are held back."""
    for _ in range(1000):
        if len(held) == count:
            return
        page.wait_for_timeout(10)  # milliseconds
    raise AssertionError(f"{len(held)} requests came, not {count}")


def test_pictures_keep_their_order_whichever_is_answered_first(page):
    held = []
    page.route("**/predict*", lambda route: held.append(route))
    page.set_input_files("#files", [FROG, EXAMPLES / "ship.jpg"])
    expect(page.locator("#status")).to_have_text("Classifying 2 pictures…")
    until_held(page, held, 2)
    held.sort(key=lambda route: b'filename="frog.jpg"' in route.request.post_data_buffer)
    ship, frog = held
    ship.continue_()
    expect(page.locator(".verdict").nth(1)).to_have_text(re.compile("^ship"))
    expect(page.locator(".verdict").nth(0)).to_have_text("…")
    frog.continue_()
    expect(page.locator(".verdict")).to_have_text([re.compile("^frog"), re.compile("^ship")])


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
    expect(page.locator(".card .name")).to_have_text("frog.jpg")
    expect(page.locator(".verdict")).to_have_text(said(FROG))


def test_examples_are_classified_at_a_click(page):
    examples = page.locator(".examples img")
    expect(examples).to_have_count(6)
    for example in examples.all():
        expect(example).to_have_js_property("complete", True)
        assert example.evaluate("image => image.naturalWidth") > 0
    button(page, "Example: frog").click()
    expect(page.locator(".verdict")).to_have_text(re.compile("^frog, 9"))
    button(page, "Example: something else").click()
    expect(page.locator(".verdict").nth(1)).to_have_text("None of these")


@pytest.mark.parametrize("path", Settings().models, ids=lambda path: path.name)
def test_examples_are_classified_correctly_by_the_models_that_they_are_offered_for(page, path):
    model = load_model(path)
    about = {"name": model.bundle.name, "labels": model.bundle.labels, "ood": True}
    *known, other = page.evaluate("examplesFor", about)
    assert len(known) == {"cifar10": 5, "airplane-or-automobile": 1}.get(path.name, 0)
    for example in known:
        prediction = model.classify((EXAMPLES / f"{example}.jpg").read_bytes())
        assert prediction.classes[0][0] == example
        assert not prediction.uncertain
    assert model.classify((EXAMPLES / f"{other}.jpg").read_bytes()).none_of_these


def test_model_that_cannot_answer_none_of_these_is_not_offered_the_drawing(page, address):
    listed = page.request.get(f"{address}/models").json()
    listed["models"][0]["ood"] = None
    page.route("**/models", lambda route: route.fulfill(json=listed))
    page.goto(address)
    expect(button(page, "Example: frog")).to_be_visible()
    expect(button(page, "Example: something else")).to_have_count(0)


def focused(page: Page, attribute: str) -> str:
    return page.evaluate(f"document.activeElement.{attribute}")


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of an accessible name has the focus."""
    for _ in range(20):
        page.keyboard.press("Tab")
        text = page.evaluate(
            "(({ ariaLabel, textContent, firstChild }) => "
            "ariaLabel ?? (firstChild?.alt || textContent.trim()))(document.activeElement)"
        )
        if text == name:
            return
    pytest.fail(f"Tab does not reach {name!r}")


def test_everything_can_be_done_by_keyboard(page):
    expect(button(page, "Example: frog")).to_be_visible()
    page.locator("#files").focus()
    tab_to(page, "Example: frog")
    page.keyboard.press("Enter")
    expect(page.locator(".verdict")).to_have_text(re.compile("^frog"))
    tab_to(page, "Classify again")
    with page.expect_response("**/predict*"):
        page.keyboard.press("Enter")
    expect(page.locator(".verdict")).to_have_text(re.compile("^frog"))
    assert focused(page, "id") == "classify"
    tab_to(page, "Enlarge frog.jpg")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text(said(EXAMPLES / "frog.jpg"))
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert focused(page, "className") == "picture"
    tab_to(page, "Remove frog.jpg")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)
    assert focused(page, "id") == "files"


def test_focus_goes_to_the_next_picture_when_one_is_removed(page):
    choose(page, FROG, EXAMPLES / "ship.jpg")
    button(page, "Remove frog.jpg").click()
    assert focused(page, "ariaLabel") == "Remove ship.jpg"
    expect(page.locator("#status")).to_have_text(re.compile("^1 picture classified: ship"))
    button(page, "Clear").click()
    assert focused(page, "id") == "files"
    expect(page.locator("#actions")).to_be_hidden()


def test_enlarged_picture_is_whole_and_larger(page, tmp_path):
    Image.new("RGB", (300, 100), "blue").save(tmp_path / "blue.png")
    choose(page, tmp_path / "blue.png")
    fit = page.locator(".card img").evaluate("image => getComputedStyle(image).objectFit")
    assert fit == "contain"  # nothing is cut off that the network sees
    button(page, "Enlarge blue.png").click()
    image = page.locator(".frame img")
    expect(image).to_have_attribute("style", re.compile("--ratio: 3"))
    width, height = image.evaluate("image => [image.clientWidth, image.clientHeight]")
    assert width > 600
    assert width / height == pytest.approx(3, rel=0.02)
    button(page, "Close").click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_another_model_answers_for_the_pictures_that_are_there(page):
    choose(page, FROG)
    page.get_by_label("Model", exact=True).select_option("unsure")
    expect(page.locator(".verdict")).to_have_text(re.compile("^Not sure: frog or [a-z]+$"))
    expect(page.locator(".took")).to_have_text(re.compile("^unsure, "))
    expect(page.locator("#curl")).to_contain_text("model=unsure")


def test_answer_that_comes_after_the_model_was_changed_is_not_shown(page):
    held = []
    page.route("**/predict*", lambda route: route.continue_() if held else held.append(route))
    page.set_input_files("#files", FROG)
    until_held(page, held, 1)
    expect(page.locator(".verdict")).to_have_text("…")
    page.get_by_label("Model", exact=True).select_option("unsure")
    expect(page.locator(".verdict")).to_have_text(re.compile("^Not sure"))
    held[0].fulfill(json={"success": False, "error": {"message": "too late"}})
    page.wait_for_timeout(100)
    expect(page.locator(".verdict")).to_have_text(re.compile("^Not sure"))


def test_photo_of_nothing_that_the_model_knows_is_none_of_its_classes(page):
    page.get_by_label("Model", exact=True).select_option("ood")
    expect(page.locator("#about")).to_have_text("It knows this, that, and nothing else.")
    choose(page, FROG)
    expect(page.locator(".verdict")).to_have_text("None of these")
    expect(page.locator(".bars")).to_be_hidden()
    page.get_by_text("If it had to be one of them").click()
    expect(page.locator(".bars")).to_be_visible()


def test_card_of_a_model_is_shown_or_else_its_figures(page):
    bundle = load_bundle(DEFAULT_MODEL)
    right = re.escape(percent(bundle.manifest["accuracy"][bundle.engine]))
    expect(page.locator("#more")).to_have_text(
        re.compile(rf"^Right on {right} of the CIFAR-10 test set, 10,000 images\. Version .+\.$")
    )
    expect(page.get_by_role("link", name="About this model")).to_have_count(0)
    page.get_by_label("Model", exact=True).select_option("unsure")
    page.get_by_role("link", name="About this model").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Of doubts")).to_be_visible()
    expect(dialog.get_by_role("cell", name="94.7%")).to_be_visible()
    assert Axe().run(page).violations_count == 0


def test_answers_are_downloaded_as_json_and_csv(page, tmp_path):
    (tmp_path / 'a "quoted", text.png').write_text("hello")
    choose(page, FROG, tmp_path / 'a "quoted", text.png')
    with page.expect_download() as download:
        button(page, "Download the answers as JSON").click()
    assert download.value.suggested_filename == "answers.json"
    frog, text = json.loads(Path(download.value.path()).read_text())
    assert (frog["filename"], frog["predictions"][0]["label"]) == ("frog.jpg", "frog")
    assert frog["model"]["name"] == "cifar10"
    assert text["error"]["code"] == "unsupported_format"
    with page.expect_download() as download:
        button(page, "Download the answers as CSV").click()
    with Path(download.value.path()).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["frog.jpg", 'a "quoted", text.png']
    assert rows[0]["label_1"] == "frog"
    assert float(rows[0]["probability_1"]) == frog["predictions"][0]["probability"]
    assert ",".join(rows[0]) == f"{csv_header(5)},error"
    assert (rows[0]["model"], rows[0]["version"]) == tuple(frog["model"].values())
    assert rows[1]["error"] == text["error"]["message"]


def test_file_name_that_begins_like_a_formula_is_text_in_the_csv(page, tmp_path):
    shutil.copy(FROG, tmp_path / "=1+1.jpg")
    choose(page, tmp_path / "=1+1.jpg")
    with page.expect_download() as download:
        button(page, "Download the answers as CSV").click()
    assert "\n'=1+1.jpg," in Path(download.value.path()).read_text()


def test_shown_curl_command_sends_a_file_of_any_name(page, tmp_path):
    name = """it's a "quoted", odd; name.jpg"""
    shutil.copy(FROG, tmp_path / name)
    choose(page, tmp_path / name)
    command = page.locator("#curl").text_content()
    run = subprocess.run(
        shlex.split(command), cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert json.loads(run.stdout)["predictions"][0]["label"] == "frog"


def test_camera_of_a_computer_shows_what_it_sees_and_takes_it(page):
    page.context.grant_permissions(["camera"])
    expect(page.locator("label[for=camera]")).to_be_hidden()
    button(page, "Take a photo").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    # Polled here and not by the page, whose Content Security Policy allows no eval.
    expect(page.locator("video")).not_to_have_js_property("videoWidth", 0)
    camera = page.evaluate_handle("document.querySelector('video').srcObject.getTracks()[0]")
    button(page, "Take the photo").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".card .name")).to_have_text("photo-1.jpg")
    expect(page.locator("#status")).to_have_text(re.compile("^1 picture classified"))
    assert camera.evaluate("track => track.readyState") == "ended"


def test_it_says_when_the_camera_may_not_be_used(page):
    button(page, "Take a photo").click()
    expect(page.locator("#status")).to_have_text("The browser was not allowed to use the camera.")


def test_phone_takes_photos_by_its_own_camera_application(browser, address):
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.goto(address)
    expect(page.locator("label[for=camera]")).to_be_visible()
    expect(page.locator("#webcam")).to_be_hidden()
    page.set_input_files("#camera", FROG)
    expect(page.locator(".verdict")).to_have_text(said(FROG))
    context.close()


def test_curl_line_is_copied_and_names_the_files(page, address):
    choose(page, FROG)
    button(page, "Copy").click()
    expect(page.locator("#status")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("curl -X POST -F image=@frog.jpg ")
    assert f"{address}/predict?top=5" in copied


def test_it_says_when_the_server_cannot_be_reached_and_asks_again(page):
    models_loaded(page)
    page.route("**/predict*", lambda route: route.abort(), times=1)
    choose(page, FROG)
    reason = "The server cannot be reached. Is it running?"
    expect(page.locator(".verdict")).to_have_text(reason)
    expect(page.locator("#status")).to_have_text(f"1 picture could not be classified: {reason}")
    button(page, "Classify again").click()
    expect(page.locator(".verdict")).to_have_text(said(FROG))


def test_page_whose_models_were_refused_loads_them_at_the_next_attempt(page, address):
    refusal = {"success": False, "error": {"code": "draining", "message": "About to stop."}}
    page.route("**/models", lambda route: route.fulfill(status=503, json=refusal), times=2)
    page.goto(address)
    expect(page.locator("#status")).to_have_text("About to stop.")
    choose(page, FROG)
    expect(page.locator(".verdict")).to_have_text(said(FROG))
    expect(page.locator("#model-row")).to_be_hidden()
    button(page, "Classify again").click()
    expect(page.get_by_label("Model", exact=True)).to_be_visible()
    expect(page.locator("#curl")).to_contain_text("model=cifar10")
    expect(page.locator(".verdict")).to_have_text(said(FROG))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"json": {"message": "none of the API's"}}, "cannot be read (status 200)"),
        ({"json": {"success": True}}, "cannot be read (status 200)"),
        ({"status": 502, "body": "<h1>Bad gateway</h1>"}, "cannot be read (status 502)"),
    ],
)
def test_answers_of_a_proxy_are_failures_after_which_pictures_are_sent_as_before(
    page, answer, words
):
    models_loaded(page)  # or then all that failed would be sent again
    page.route("**/predict*", lambda route: route.fulfill(**answer), times=2)
    choose(page, FROG, EXAMPLES / "ship.jpg")
    expect(page.locator("#status")).to_have_text("2 pictures could not be classified")
    expect(page.locator(".verdict").first).to_contain_text(words)
    button(page, "Classify again").click()
    expect(page.locator("#status")).to_have_text("2 pictures classified")


def test_only_what_failed_is_classified_again(page):
    models_loaded(page)
    refusal = {"success": False, "error": {"code": "too_many_requests", "message": "Later."}}
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    wait = {"Retry-After": "7"}
    page.route(
        "**/predict*", lambda route: route.fulfill(status=429, json=refusal, headers=wait), times=1
    )
    choose(page, FROG, EXAMPLES / "ship.jpg")
    expect(page.locator("#status")).to_have_text("1 of 2 pictures could not be classified")
    expect(page.locator(".failed .verdict")).to_have_text(
        "Too many requests. Try again in 7 seconds."
    )
    sent.clear()
    button(page, "Classify again").click()
    expect(page.locator("#status")).to_have_text("2 pictures classified")
    assert len([url for url in sent if "/predict" in url]) == 1


def test_key_that_no_header_can_hold_is_not_valid(page):
    page.evaluate("document.getElementById('key').value = 'abc\u200b'")
    choose(page, FROG)
    expect(page.locator(".verdict")).to_have_text("This API key is not valid.")
    expect(page.get_by_label("API key")).to_be_visible()


def drop_text(page: Page, target: str) -> bool:
    """Drop a text on an element; True where the browser is left to deal with it."""
    script = """target => {
        const data = new DataTransfer();
        data.setData("text/plain", "hello");
        const init = { bubbles: true, cancelable: true, dataTransfer: data };
        return document.querySelector(target).dispatchEvent(new DragEvent("drop", init));
    }"""
    return page.evaluate(script, target)


def test_dropped_text_goes_into_a_field_and_is_no_picture_elsewhere(page):
    assert drop_text(page, "#key")
    assert not drop_text(page, "#drop")
    expect(page.locator("#status")).to_have_text("There was no picture in what was dropped.")


def test_answers_leave_a_message_as_it_is(page):
    held: list[Route] = []
    page.route("**/predict*", lambda route: held.append(route))
    page.set_input_files("#files", [FROG, EXAMPLES / "ship.jpg"])
    until_held(page, held, 2)
    drop_text(page, "#drop")
    held.pop().continue_()
    expect(page.locator("progress").first).to_be_visible()
    expect(page.locator("#status")).to_have_text("There was no picture in what was dropped.")
    held.pop().continue_()
    expect(page.locator("#status")).to_have_text("2 pictures classified")


def test_models_that_arrive_late_leave_a_message_as_it_is(page):
    held: list[Route] = []
    page.route("**/models", lambda route: held.append(route))
    with page.expect_request("**/models"):
        page.reload()
    drop_text(page, "#drop")
    held.pop().continue_()
    models_loaded(page)
    expect(page.locator("#status")).to_have_text("There was no picture in what was dropped.")


def test_curl_line_names_as_many_files_as_a_request_may_have(page, tmp_path):
    files = [shutil.copy(EXAMPLES / "ship.jpg", tmp_path / f"{i}.jpg") for i in range(17)]
    choose(page, *map(Path, files))
    expect(page.locator("#status")).to_have_text("17 pictures classified")
    assert page.locator("#curl").text_content().count("-F ") == 16


def test_camera_that_is_asked_for_twice_is_opened_once(page):
    page.context.grant_permissions(["camera"])
    opened = page.evaluate(
        """async () => {
            const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
            let calls = 0;
            devices.getUserMedia = (wanted) => { calls += 1; return open(wanted); };
            for (let i = 0; i < 2; i++) document.getElementById("webcam").click();
            return calls;
        }"""
    )
    assert opened == 1
    expect(page.get_by_role("dialog")).to_be_visible()


def test_answer_that_comes_while_its_picture_is_enlarged_is_shown_there(page):
    held = []
    page.route("**/predict*", lambda route: held.append(route))
    page.set_input_files("#files", FROG)
    button(page, "Enlarge frog.jpg").click()
    expect(button(page, "Where it looked")).to_be_hidden()
    until_held(page, held, 1)
    held[0].continue_()
    expect(page.locator("#viewer-answer")).to_have_text(said(FROG))
    expect(button(page, "Where it looked")).to_be_visible()


def test_models_that_arrive_while_a_picture_is_enlarged_say_whether_they_explain_it(page):
    held: list[Route] = []
    page.route("**/models", lambda route: held.append(route))
    with page.expect_request("**/models"):
        page.reload()
    choose(page, FROG)
    button(page, "Enlarge frog.jpg").click()
    expect(button(page, "Where it looked")).to_be_hidden()
    held.pop().continue_()
    expect(button(page, "Where it looked")).to_be_visible()


def test_pictures_go_to_the_default_model_once_theirs_has_gone(page):
    models_loaded(page)
    unknown = {"success": False, "error": {"code": "unknown_model", "message": "There is none."}}
    page.route("**/predict*", lambda route: route.fulfill(status=404, json=unknown), times=1)
    page.get_by_label("Model", exact=True).select_option("unsure")
    page.route("**/models", lambda route: route.fulfill(json=without(route.fetch(), "unsure")))
    choose(page, FROG)
    expect(page.locator(".verdict")).to_have_text("There is none.")
    button(page, "Classify again").click()
    expect(page.locator(".verdict")).to_have_text(said(FROG))


def without(answer: APIResponse, name: str) -> dict:
    """The answer of GET /models without one of them."""
    told = answer.json()
    return told | {"models": [model for model in told["models"] if model["name"] != name]}


def test_chosen_model_stays_chosen_when_models_are_loaded_again(page):
    page.get_by_label("Model", exact=True).select_option("ood")
    page.evaluate("loadModels()")
    expect(page.get_by_label("Model", exact=True)).to_have_value("ood")


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "The file is empty."), (10 * 2**20, "The file is too large. Send at most 10 MiB.")],
    ids=["empty", "too large"],
)
def test_file_that_would_be_refused_is_named_so_and_not_sent(page, tmp_path, size, words):
    (tmp_path / "photo.jpg").write_bytes(bytes(size))
    sent = []
    page.route("**/predict*", lambda route: sent.append(route))
    choose(page, tmp_path / "photo.jpg")
    expect(page.locator(".verdict")).to_have_text(words)
    assert not sent


def test_file_that_can_no_longer_be_read_is_named_so(page, tmp_path):
    shutil.copy(FROG, tmp_path / "moved.jpg")
    choose(page, tmp_path / "moved.jpg")
    (tmp_path / "moved.jpg").unlink()
    button(page, "Classify again").click()
    expect(page.locator(".verdict")).to_have_text(
        re.compile("^This cannot be read: it is a folder")
    )


def test_refusal_of_a_card_is_shown_in_the_words_of_the_api(page):
    refusal = {"success": False, "error": {"code": "no_card", "message": "It has no card."}}
    page.get_by_label("Model", exact=True).select_option("unsure")
    page.route("**/card", lambda route: route.fulfill(status=404, json=refusal))
    page.get_by_role("link", name="About this model").click()
    expect(page.locator("#status")).to_have_text("It has no card.")
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(page, scheme, tmp_path):
    page.emulate_media(color_scheme=scheme)
    (tmp_path / "no image.txt").write_text("hello")
    choose(page, *EXAMPLES.glob("*.jpg"), tmp_path / "no image.txt")
    complain_not(page)
    button(page, "Enlarge frog.jpg").click()
    complain_not(page)


def test_viewer_shows_where_the_network_looked_and_the_picture_again(page):
    choose(page, FROG)
    button(page, "Enlarge frog.jpg").click()
    switch, shade = button(page, "Where it looked"), page.locator("#shade")
    expect(shade).to_be_hidden()
    switch.click()
    expect(shade).to_be_visible()
    expect(switch).to_have_attribute("aria-pressed", "true")
    alphas = shade.evaluate(
        """canvas => {
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            return [...data].filter((_, i) => i % 4 === 3);
        }"""
    )
    assert len(alphas) == 64
    assert min(alphas) == 0  # the part that speaks most for the frog
    assert max(alphas) == 215
    complain_not(page)
    switch.click()
    expect(shade).to_be_hidden()


# Counts the answers that the page has read, each with what it does next.
COUNT_READ = """() => {
    window.read = 0;
    const json = Response.prototype.json;
    Response.prototype.json = async function () {
        const answer = await json.call(this);
        setTimeout(() => { document.body.dataset.read = window.read += 1; });
        return answer;
    };
}"""


def test_explanation_that_comes_late_is_not_shown_over_another_picture(page, tmp_path):
    shutil.copy(FROG, tmp_path / "other.jpg")
    choose(page, FROG, tmp_path / "other.jpg")
    late = []
    page.route("**/predict?*explain=true", lambda route: late.append(route))
    page.evaluate(COUNT_READ)
    button(page, "Enlarge frog.jpg").click()
    button(page, "Where it looked").click()
    until_held(page, late, 1)
    page.keyboard.press("Escape")
    button(page, "Enlarge other.jpg").click()
    button(page, "Where it looked").click()
    until_held(page, late, 2)
    late[0].continue_()
    expect(page.locator("body")).to_have_attribute("data-read", "1")
    expect(page.locator("#shade")).to_be_hidden()
    late[1].continue_()
    expect(page.locator("#shade")).to_be_visible()


def test_model_that_cannot_explain_offers_no_switch(page):
    page.get_by_label("Model", exact=True).select_option("ood")
    choose(page, FROG)
    button(page, "Enlarge frog.jpg").click()
    expect(button(page, "Where it looked")).to_be_hidden()


def complain_not(page: Page) -> None:
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_page_fits_a_small_phone(browser, address, tmp_path):
    (tmp_path / "a long name of a file that is not an image.txt").write_text("hello")
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.goto(address)
    choose(page, FROG)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    choose(page, *EXAMPLES.glob("*.jpg"), *tmp_path.iterdir())
    expect(page.locator("#status")).to_have_text("1 of 8 pictures could not be classified")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    button(page, "Enlarge ship.jpg").click()
    assert page.get_by_role("dialog").evaluate("e => e.getBoundingClientRect().right") <= 360
    context.close()


def lines_of_words(table: Locator) -> list[int]:
    """On how many lines each word of a table stands."""
    return table.evaluate(
        """table => [...table.querySelectorAll("th, td")].flatMap(({ firstChild }) =>
            [...firstChild.data.matchAll(/[^ ]+/g)].map(({ 0: word, index }) => {
                const range = document.createRange();
                range.setStart(firstChild, index);
                range.setEnd(firstChild, index + word.length);
                return range.getClientRects().length;
            }))"""
    )


def test_card_breaks_no_word_on_a_small_phone(browser, address):
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.goto(f"{address}/models/unsure/card")
    assert set(lines_of_words(page.locator("table"))) == {1}
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    complain_not(page)
    page.goto(address)
    page.get_by_label("Model", exact=True).select_option("unsure")
    page.get_by_role("link", name="About this model").click()
    assert set(lines_of_words(page.get_by_role("dialog").locator("table"))) == {1}
    complain_not(page)
    context.close()


@pytest.fixture
def plain_page(browser, address) -> Iterator[Page]:
    """The page in a browser without JavaScript, on a small phone."""
    context = browser.new_context(java_script_enabled=False, **PHONE)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


def test_without_javascript_a_form_is_answered_by_a_page(plain_page):
    page = plain_page
    expect(page.get_by_text("Choose pictures")).to_be_hidden()
    page.get_by_label("A picture").set_input_files(EXAMPLES / "cat.jpg")
    button(page, "Classify with cifar10").click()
    expect(page.get_by_role("heading")).to_have_text(f"Probably {said(EXAMPLES / 'cat.jpg')}")
    expect(page.locator(".bars li")).to_have_count(bars(EXAMPLES / "cat.jpg"))
    expect(page.locator(".took")).to_have_text(re.compile(r"^cifar10 answered in \d+\u00a0ms\.$"))
    page.get_by_role("link", name="Another picture").click()
    page.get_by_label("A picture").set_input_files(FROG)
    button(page, "Classify with unsure").click()
    expect(page.get_by_role("heading")).to_have_text(re.compile("^Not sure: frog or "))


def test_without_javascript_a_refusal_is_a_page(plain_page, tmp_path):
    (tmp_path / "no image.txt").write_text("hello")
    plain_page.get_by_label("A picture").set_input_files(tmp_path / "no image.txt")
    button(plain_page, "Classify with ood").click()
    expect(plain_page.get_by_role("heading")).to_contain_text("not an image in one of the formats")
    expect(plain_page.get_by_role("link", name="Another picture")).to_be_visible()


def test_without_javascript_each_model_is_listed_with_its_classes_and_card(plain_page):
    expect(plain_page.locator("dt")).to_have_text(["cifar10", "unsure", "ood"])
    expect(plain_page.locator("dd").nth(2)).to_have_text("this, that")
    assert plain_page.evaluate("document.documentElement.scrollWidth") <= 360
    plain_page.get_by_role("link", name="unsure").click()
    expect(plain_page.get_by_role("heading", name="Of doubts")).to_be_visible()


def test_without_javascript_the_documentation_page_links_the_description(plain_page, address):
    plain_page.goto(f"{address}/docs")
    link = plain_page.get_by_role("link", name="the OpenAPI description")
    expect(link).to_have_attribute("href", "/openapi.json")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_pages_that_the_server_writes(browser, address, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{address}/models/unsure/card")
    complain_not(page)
    for model in ("unsure", "ood"):
        page.goto(address)
        page.evaluate(
            """async (model) => {
                const form = document.createElement("form");
                form.innerHTML = '<input type="file" name="image" id="plain"><button>Go</button>';
                form.action = `/predict?top=5&model=${model}`;
                [form.method, form.enctype] = ["post", "multipart/form-data"];
                document.body.append(form);
            }""",
            model,
        )
        page.set_input_files("#plain", EXAMPLES / "cat.jpg")
        button(page, "Go").click()
        expect(page.get_by_role("link", name="Another picture")).to_be_visible()
        complain_not(page)
    context.close()


def test_documentation_page_works_without_the_internet(page, address):
    page.context.route(lambda url: not url.startswith(address), lambda route: route.abort("failed"))
    page.goto(f"{address}/docs")
    expect(page.get_by_text("/predict").first).to_be_visible()
    expect(page.get_by_text("Classify one image, or several.")).to_be_visible()


def test_documentation_page_links_the_page(page, address):
    page.goto(f"{address}/docs")
    page.get_by_role("link", name="Classify a picture").click()
    expect(page.get_by_role("heading", name="What is in the picture?")).to_be_visible()


def test_documentation_page_is_dark_where_that_is_preferred(page, address):
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}/docs")
    expect(page.get_by_text("/predict").first).to_be_visible()
    background = page.locator("html").evaluate("html => getComputedStyle(html).backgroundColor")
    assert background.startswith("rgb(")  # rgba() would be transparent
    assert max(map(int, re.findall(r"\d+", background))) < 64


def test_documentation_page_begins_with_the_form_for_files(page, address):
    page.goto(f"{address}/docs")
    first = page.locator(".opblock").first
    expect(first).to_contain_text("/predict")
    first.get_by_text("/predict").click()
    expect(first.get_by_label("Request content type")).to_have_value("multipart/form-data")
    first.get_by_role("button", name="Try it out").click()
    expect(first.locator("input[type=file]")).to_be_visible()


@pytest.fixture(scope="module")
def guarded_address(tmp_path_factory) -> Iterator[str]:
    """A server of two models that wants a key, as a browser on the LAN sees it: by plain HTTP."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text("open-sesame")
    shutil.copytree(DEFAULT_MODEL, folder / "models" / "other")
    rename(folder / "models" / "other", "other")
    (folder / "models" / "other" / "CARD.md").write_text("# The card\n\n[Licence](/docs)")
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
    expect(page.get_by_label("Model", exact=True)).to_be_hidden()
    page.set_input_files("#files", FROG)
    expect(page.locator(".verdict")).to_have_text("Enter the API key of this server.")
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Tab")
    expect(page.locator("#status")).to_have_text("This API key is not valid.")
    page.get_by_label("API key").fill("open-sesame")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Model", exact=True)).to_be_visible()
    expect(page.locator(".verdict")).to_have_text(said(FROG))
    page.get_by_label("Model", exact=True).select_option("other")
    expect(page.locator(".took")).to_have_text(re.compile("^other, "))
    page.get_by_role("link", name="About this model").click()
    expect(page.get_by_role("dialog")).to_contain_text("The card")
    page.keyboard.press("Escape")
    button(page, "Example: something else").click()
    expect(page.locator(".verdict").nth(1)).to_have_text("None of these")


def test_message_about_a_key_goes_when_another_is_entered(guarded_page):
    page = guarded_page
    for key in ("open-sesame", "wrong"):
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Tab")
    expect(page.locator("#status")).to_have_text("This API key is not valid.")
    page.get_by_label("API key").fill("open-sesame")
    page.keyboard.press("Tab")
    expect(page.locator("#status")).to_have_text("")


def test_picture_that_was_sent_before_the_key_was_entered_is_sent_again(guarded_page):
    page = guarded_page
    expect(page.locator("#status")).to_have_text("Enter the API key of this server.")
    held: list[Route] = []
    page.route("**/predict*", lambda route: held.append(route), times=1)
    page.set_input_files("#files", FROG)
    until_held(page, held, 1)
    page.get_by_label("API key").fill("open-sesame")
    page.keyboard.press("Tab")
    models_loaded(page)
    held.pop().continue_()
    expect(page.locator(".verdict")).to_have_text(said(FROG))


def test_links_of_a_model_card_leave_the_pictures(guarded_page):
    page = guarded_page
    page.get_by_label("API key").fill("open-sesame")
    page.keyboard.press("Tab")
    page.get_by_label("Model", exact=True).select_option("other")
    page.get_by_role("link", name="About this model").click()
    with page.context.expect_page():
        page.get_by_role("dialog").get_by_role("link").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("The card")


def test_page_without_https_offers_no_camera_that_the_browser_would_refuse(guarded_page):
    expect(guarded_page.get_by_text("Choose pictures")).to_be_visible()
    expect(guarded_page.get_by_text("Take a photo").filter(visible=True)).to_have_count(0)


def test_curl_line_is_copied_on_a_page_without_https(guarded_page):
    page = guarded_page
    expect(page.locator("#status")).to_have_text("Enter the API key of this server.")
    assert page.evaluate("navigator.clipboard") is None
    button(page, "Copy").click()
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
