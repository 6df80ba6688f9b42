"""Make images/page.png, the picture of the web page, from a running server.

    python rest_api/app.py
    python -m docs.screenshot

Needs Chromium, as the tests of the page do.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Error, expect, sync_playwright

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "rest_api" / "static" / "examples"
PICTURES = [
    ROOT / "rest_api" / "frog.jpg",
    *(EXAMPLES / f"{name}.jpg" for name in ("ship", "cat", "something-else")),
]


def take(url: str, path: Path) -> None:
    """Let the page at `url` classify PICTURES, and write what it shows to `path`."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = {"width": 920, "height": 800}
        page = browser.new_page(viewport=window, device_scale_factor=1.25, color_scheme="light")
        page.goto(url)
        page.set_input_files("#files", PICTURES)
        done = f"{len(PICTURES)} pictures classified"
        expect(page.locator("#status")).to_have_text(done)
        page.get_by_role("button", name="Classify again").click()  # on connections that are open
        expect(page.locator("#status")).to_have_text(done)
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        browser.close()
    picture.convert("RGB").quantize(256).save(path, optimize=True)  # a third of the bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--url", default="http://localhost:5000", help="of the server (%(default)s)"
    )
    try:
        take(parser.parse_args().url, ROOT / "images" / "page.png")
    except Error as error:
        sys.exit(f"error: {error.message.splitlines()[0]}")


if __name__ == "__main__":
    main()
