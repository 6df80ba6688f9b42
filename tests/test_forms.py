"""The answer to a browser's plain form, the models' cards and what the page is made of."""

import io
import re
import shutil
import sys

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from docs import examples
from rest_api.app import create_app
from rest_api.forms import headline, percent, prefers_page
from rest_api.pages import listed
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import FROG, ROOT

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
CARD = """# The card

| set | right |
|---|---:|
| test | 94 % |

<script>alert(1)</script> [link](javascript:alert(1))
"""


def send(client: FlaskClient, accept: str | None, *names: str, query: str = ""):
    """POST the frog as a form, once under each of the names."""
    images = [(io.BytesIO(FROG.read_bytes()), name) for name in names or ("frog.jpg",)]
    headers = {"Accept": accept} if accept else {}
    return client.post(f"/predict{query}", data={"image": images}, headers=headers)


@pytest.mark.parametrize(
    "accept", [None, "*/*", "application/json", "application/json, text/html", "text/html;q=0, */*"]
)
def test_programs_are_answered_in_json(client, accept):
    answer = send(client, accept)
    assert answer.content_type == "application/json"
    assert answer.get_json()["predictions"][0]["label"] == "frog"


def test_browsers_form_is_answered_by_a_page_of_the_same_facts(client):
    facts = send(client, None, query="?top=5").get_json()
    answer = send(client, BROWSER, query="?top=5")
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Request-ID"]
    assert f"<h1>frog, {percent(facts['predictions'][0]['probability'])}</h1>" in answer.text
    bars = re.findall(r'label">(.+?)</span>\s*<progress max="1" value="(.+?)"', answer.text)
    shown = [{"label": label, "probability": float(share)} for label, share in bars]
    assert shown
    assert shown == facts["predictions"][: len(shown)]
    assert re.search(r"cifar10 answered in \d+&nbsp;ms", answer.text)


def test_browser_that_asks_for_the_head_alone_gets_no_page(client):
    answer = client.head("/predict", headers={"Accept": BROWSER})
    assert (answer.status_code, answer.data) == (405, b"")


def test_several_files_of_a_form_are_shown_each_and_their_names_escaped(client):
    (best, *_) = send(client, None).get_json()["predictions"]
    answer = send(client, BROWSER, "one.jpg", "<b>two</b>.jpg")
    verdict = f"frog, {percent(best['probability'])}"
    assert answer.text.count(f'<h2 class="verdict">{verdict}</h2>') == 2
    assert "<b>two" not in answer.text
    assert "&lt;b&gt;two&lt;/b&gt;.jpg" in answer.text


def test_refusal_of_a_form_is_a_page_with_its_status_and_message(client):
    answer = client.post("/predict?model=<b>", headers={"Accept": BROWSER})
    assert answer.status_code == 404
    assert "There is no model &#39;&lt;b&gt;&#39;. There are: cifar10, " in answer.text
    opened = client.get("/predict", headers={"Accept": BROWSER})
    assert opened.status_code == 405
    assert opened.headers["Allow"]
    assert "<h1" in opened.text


def test_refusal_by_the_gateway_is_a_page_too():
    from rest_api.gateway import call_wsgi, overloaded

    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/predict", "HTTP_ACCEPT": BROWSER}
    status, headers, body = call_wsgi(create_app().refuse(overloaded()), environ)
    assert status == 503
    assert dict(headers)["Retry-After"] == "1"
    assert b"The server is busy. Try again in 1 second.</h1>" in body


def test_with_a_rate_limit_other_refusals_say_why_and_not_when_to_come_back():
    client = create_app(Settings(rate_limit="100/minute")).test_client()
    data = {"image": (io.BytesIO(b"hello"), "notes.txt")}
    answer = client.post("/predict", data=data, headers={"Accept": BROWSER})
    assert "This is not an image" in answer.text
    assert "Retry-After" not in answer.headers


def test_other_routes_answer_browsers_as_before(client):
    assert client.get("/models", headers={"Accept": BROWSER}).get_json()["success"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"probability": 0.98}, "cat, 98.0\u00a0%"),
        ({"probability": 0.99997}, "cat, over 99.9\u00a0%"),
        ({"probability": 0.7}, "Probably cat, 70.0\u00a0%"),
        ({"probability": 0.4, "uncertain": True}, "Not sure: cat or dog"),
        ({"probability": 0.9, "uncertain": True, "none_of_these": True}, "None of these"),
    ],
)
def test_headline_says_how_sure_the_answer_is(answer, words):
    best = {"label": "cat", "probability": answer.pop("probability")}
    rest = {"label": "dog", "probability": 0.01}
    told = {"success": True, "uncertain": False, "none_of_these": False, **answer}
    assert headline(told | {"predictions": [best, rest]}) == words


def test_headline_of_one_class_is_unsure_of_that(client):
    answer = send(client, None, query="?top=1").get_json() | {"uncertain": True}
    assert headline(answer) == "Not sure: frog"


def test_no_probability_is_shown_as_0_or_1_and_its_unit_stays_on_its_line():
    assert [percent(share) for share in (0, 0.0004, 0.0006, 0.9994, 0.9996, 1)] == [
        "under 0.1\u00a0%",
        "under 0.1\u00a0%",
        "0.1\u00a0%",
        "99.9\u00a0%",
        "over 99.9\u00a0%",
        "over 99.9\u00a0%",
    ]


def test_page_is_preferred_only_by_name():
    assert prefers_page("text/html")
    assert not prefers_page("text/*")
    assert prefers_page("a/a," * 100 + "text/html")
    assert not prefers_page("a/a," * 1000 + "text/html")  # which would take long to read
    assert not prefers_page("")


@pytest.fixture(scope="module")
def with_card(tmp_path_factory) -> Settings:
    """The settings of a server whose model has a card."""
    bundle = tmp_path_factory.mktemp("bundles") / "cifar10"
    shutil.copytree(DEFAULT_MODEL, bundle)
    (bundle / "CARD.md").write_text(CARD)
    return Settings(models=(bundle,))


def test_card_of_a_model_is_served_in_markdown_and_to_browsers_as_a_safe_page(with_card):
    client = create_app(with_card).test_client()
    assert client.get("/models").get_json()["models"][0]["card"] is True
    plain = client.get("/models/cifar10/card")
    assert plain.content_type == "text/markdown; charset=utf-8"
    assert plain.text == CARD
    page = client.get("/models/cifar10/card", headers={"Accept": BROWSER})
    assert page.content_type == "text/html; charset=utf-8"
    assert "<h1>The card</h1>" in page.text
    assert '<td class="figure">94 %</td>' in page.text
    assert "style=" not in page.text
    assert "<script" not in page.text
    assert 'href="javascript' not in page.text


def test_model_without_a_card_says_so(tmp_path):
    shutil.copytree(DEFAULT_MODEL, tmp_path / "bare", ignore=lambda *_: ["CARD.md"])
    client = create_app(Settings(models=(tmp_path / "bare",))).test_client()
    assert client.get("/models").get_json()["models"][0]["card"] is False
    answer = client.get("/models/cifar10/card")
    assert answer.status_code == 404
    assert answer.get_json()["error"] == {
        "code": "no_card",
        "message": "The model 'cifar10' has no card.",
    }
    assert client.get("/models/other/card").get_json()["error"]["code"] == "unknown_model"


def test_card_needs_a_key_where_there_are_keys(with_card):
    client = create_app(Settings(models=with_card.models, api_keys=("secret",))).test_client()
    assert client.get("/models/cifar10/card").status_code == 401
    assert client.get("/models/cifar10/card", headers={"X-API-Key": "secret"}).status_code == 200


def test_plain_form_offers_the_models_unless_they_are_behind_a_key(client):
    assert 'formaction="/predict?top=5&amp;model=cifar10"' in client.get("/").text
    guarded = create_app(Settings(api_keys=("secret",))).test_client()
    assert "model=cifar10" not in guarded.get("/").text


def test_page_without_javascript_lists_the_models_with_classes_and_cards_unless_behind_a_key(
    with_card,
):
    page = create_app(with_card).test_client().get("/").text
    assert '<a href="/models/cifar10/card">cifar10</a>' in page
    assert "<dd>airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck</dd>" in page
    guarded = create_app(Settings(models=with_card.models, api_keys=("secret",))).test_client()
    assert "airplane" not in guarded.get("/").text


def test_page_without_javascript_links_no_card_where_there_is_none(tmp_path):
    shutil.copytree(DEFAULT_MODEL, tmp_path / "bare", ignore=lambda *_: ["CARD.md"])
    page = create_app(Settings(models=(tmp_path / "bare",))).test_client().get("/").text
    assert "<dt>cifar10</dt>" in page
    assert "/card" not in page


def test_of_many_classes_the_page_names_the_first():
    assert listed("abc") == "a, b, c"
    assert listed([str(number) for number in range(17)]).endswith("13, 14 and 2 more")


def test_examples_are_what_their_command_makes(real_cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["examples", "--data", str(real_cifar)])
    examples.main()
    made = sorted(tmp_path.iterdir())
    shipped = sorted(ROOT.glob("rest_api/static/examples/*"))
    assert [path.name for path in made] == [path.name for path in shipped]
    for one, other in zip(made, shipped, strict=True):
        pixels = [np.asarray(Image.open(path), np.float32) for path in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).mean() < 2, one.name  # versions of JPEG differ
        assert other.stat().st_size < 10_000


def test_page_weighs_less_than_60_kilobytes():
    files = [*ROOT.glob("rest_api/static/*.*"), *ROOT.glob("rest_api/templates/*.html")]
    assert {"page.js", "page.css", "index.html"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < 60_000
