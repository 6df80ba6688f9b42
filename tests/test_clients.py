"""The clients that docs/clients.md shows, beside those in Python that test_docs.py runs."""

import base64
import re

import pytest

from tests.support import FROG, ROOT, server

CLIENTS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


@pytest.fixture
def app(monkeypatch):
    """The Streamlit application, before a photo is chosen."""
    testing = pytest.importorskip("streamlit.testing.v1", reason="pip install '.[examples]'")
    monkeypatch.chdir(ROOT)
    return testing.AppTest.from_file(str(ROOT / "examples/streamlit_app.py"), default_timeout=30)


def process(app, photo: bytes):
    app.run()
    app.file_uploader[0].set_value(("photo.jpg", photo, "image/jpeg")).run()
    app.button[0].click().run()
    assert not app.exception
    return app


def test_streamlit_application_names_the_frog(app):
    assert process(app, FROG.read_bytes()).header[0].value == "frog"


def test_streamlit_application_says_what_is_wrong_with_a_file(app):
    assert "not an image" in process(app, b"no image").error[0].value


@pytest.mark.slow
def test_streamlit_application_asks_a_server(app, monkeypatch):
    with server("--workers", "1") as (_, port):
        monkeypatch.setenv("SERVER", f"http://127.0.0.1:{port}")
        assert process(app, FROG.read_bytes()).header[0].value == "frog"
        assert "not an image" in process(app, b"no image").error[0].value


@pytest.mark.slow
def test_shown_javascript_names_the_frog(browser):
    (script,) = re.findall(r"^```js\n(.*?)^```$", CLIENTS, re.DOTALL | re.MULTILINE)
    with server("--workers", "1") as (_, port):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        label = page.evaluate(
            f"""async (photo) => {{
                {script.replace("localhost:5000", f"127.0.0.1:{port}")}
                const bytes = Uint8Array.from(atob(photo), c => c.charCodeAt(0));
                return await classify(new File([bytes], "frog.jpg"));
            }}""",
            base64.b64encode(FROG.read_bytes()).decode(),
        )
    assert label == "frog"
