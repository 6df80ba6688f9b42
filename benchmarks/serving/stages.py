"""How long each stage of a request takes, alone in a process, without the network between."""

import io
from typing import Any

import numpy as np
from werkzeug.test import create_environ

from benchmarks.common import milliseconds
from benchmarks.serving.load import FORM, multipart
from rest_api.api import sent_images
from rest_api.app import create_app
from rest_api.bundle import sizes_of
from rest_api.classifier import load_model
from rest_api.engine import exits_early
from rest_api.gateway import call_wsgi
from rest_api.images import decode, to_views
from rest_api.settings import DEFAULT_MODEL

TURNS = 100


def stages(image: bytes) -> dict[str, float]:
    """Median milliseconds of each stage of one request, the stages measured in turn."""
    app = create_app()
    model = load_model(DEFAULT_MODEL)
    side, views = model.bundle.input_size, model.bundle.views
    body = multipart(image)
    environ = create_environ(
        "/predict", method="POST", data=body, content_type=FORM["Content-Type"]
    )

    def request() -> dict[str, Any]:
        return {**environ, "wsgi.input": io.BytesIO(body)}

    def parse() -> None:
        with app.request_context(request()) as context:
            sent_images(context.request, app.settings)

    largest = max(sizes_of(views, side))
    decoded = decode(image, largest)
    pixels = [view[np.newaxis] for view in to_views(decoded, side, views)]
    if exits_early(model.predict(pixels[0]), model.bundle.early_exit):
        pixels = pixels[:1]
    calls = {
        "parse": parse,
        "decode": lambda: decode(image, largest).load(),
        "resize": lambda: to_views(decoded, side, views),
        "infer": lambda: [model.predict(view) for view in pixels],
        "all": lambda: call_wsgi(app.wsgi_app, request()),
    }
    turns = [[milliseconds(call, 1)[0] for call in calls.values()] for _ in range(TURNS)]
    medians = dict(zip(calls, np.median(turns, axis=0).tolist(), strict=True))
    whole = medians.pop("all")
    return medians | {"route, encode": whole - sum(medians.values()), "all": whole}
