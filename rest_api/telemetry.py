"""What operators see: Prometheus metrics, and one line of JSON in the log for each request.

With several processes, main() in app.py names a folder in PROMETHEUS_MULTIPROC_DIR, through which
each process's figures reach the one that answers GET /metrics.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import msgspec
from flask import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from werkzeug.wsgi import get_content_length

from rest_api.bundle import Bundle
from rest_api.classifier import LoadedModel, Prediction
from rest_api.schema import classifying_route

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)  # seconds
# Fine for log odds; further down for squared distances.
OOD_BUCKETS = (-1000, -500, -200, -100, -50, -20, -15, -10, *range(-8, 9), 10, 15, 20)

REQUESTS = Counter("classifier_requests", "Requests answered", ["route", "status"])
SECONDS = Histogram("classifier_seconds", "Time of a stage", ["stage"], buckets=BUCKETS)
IN_FLIGHT = Gauge("classifier_in_flight", "Requests being answered", multiprocess_mode="livesum")
REJECTED = Counter("classifier_rejected", "Images and requests refused", ["code"])
PREDICTIONS = Counter("classifier_predictions", "Images by best class", ["model", "label"])
VERDICTS = Counter("classifier_verdicts", "Images by verdict", ["model", "verdict"])
OOD_SCORES = Histogram(
    "classifier_ood_score", "Out-of-distribution scores", ["model"], buckets=OOD_BUCKETS
)
MODEL = Gauge("classifier_model", "Loaded models", ["name", "version"], multiprocess_mode="livemax")

log = logging.getLogger("rest_api.requests")
line: ContextVar[dict[str, Any]] = ContextVar("line")  # of the log, for the request in progress
SANE_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def with_telemetry(wsgi: WSGIApplication) -> WSGIApplication:
    """Count, time and log every request, and name it in X-Request-ID.

    Around Flask, not by its own hooks, which cost more.
    """

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter()
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if SANE_ID.fullmatch(given) else secrets.token_hex(16)
        line.set({"time": round(time.time(), 3), "id": request_id})

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            record(environ, int(status[:3]), time.perf_counter() - began)
            return start_response(status, [*headers, ("X-Request-ID", request_id)], exc_info)

        IN_FLIGHT.inc()
        try:
            return wsgi(environ, start)
        finally:
            IN_FLIGHT.dec()

    return call


@cache
def series(metric: Counter | Histogram, *labels: Any) -> Any:
    """A metric's series of some labels, found faster than by the metric itself."""
    return metric.labels(*labels)


def record(environ: WSGIEnvironment, status: int, seconds: float) -> None:
    """Count a request that has been answered, and log it."""
    request = environ.get("werkzeug.request")  # none where the gateway has refused
    if request is not None:
        route = request.url_rule.rule if request.url_rule else "none"
        series(SECONDS, "total").observe(seconds)
    else:
        route = classifying_route(environ["PATH_INFO"]) or "none"
    series(REQUESTS, route, status).inc()
    entry = {
        **line.get(),
        "method": environ["REQUEST_METHOD"],
        "route": route,
        "status": status,
        "bytes": get_content_length(environ) or 0,
        "ms": round(1000 * seconds, 2),
    }
    log.info("%s", msgspec.json.encode(entry).decode())


def classified(bundle: Bundle, prediction: Prediction) -> None:
    """Count the prediction for an image, and note its times for the log."""
    series(PREDICTIONS, bundle.name, prediction.classes[0][0]).inc()
    series(VERDICTS, bundle.name, verdict(prediction)).inc()
    if bundle.ood:
        series(OOD_SCORES, bundle.name).observe(prediction.score)
    entry = line.get()
    for stage, seconds in (
        ("decode", prediction.decode_seconds),
        ("infer", prediction.inference_seconds),
    ):
        series(SECONDS, stage).observe(seconds)
        entry[f"{stage}_ms"] = round(entry.get(f"{stage}_ms", 0) + 1000 * seconds, 2)


def verdict(prediction: Prediction) -> str:
    if prediction.none_of_these:
        return "none_of_these"
    return "unsure" if prediction.uncertain else "answered"


def rejected(code: str) -> None:
    """Count an image or a request that was refused."""
    series(REJECTED, code).inc()


def count_models(models: Mapping[str, LoadedModel], number: int) -> None:
    """Record that models are loaded (1), or no longer (0)."""
    for name, model in models.items():
        MODEL.labels(name, model.bundle.version).set(number)


def metrics() -> Response:
    """All processes' figures, in Prometheus's text format."""
    registry: CollectorRegistry = REGISTRY
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        for pid in {int(path.stem.rpartition("_")[2]) for path in Path(folder).glob("*.db")}:
            if not is_alive(pid):
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
