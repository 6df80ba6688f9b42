"""What operators see: Prometheus metrics, and one line of JSON in the log for each request.

With several processes, main() in app.py names a folder in PROMETHEUS_MULTIPROC_DIR, through which
each process's figures reach whichever answers GET /metrics.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

import msgspec
from flask import Request, Response
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

from rest_api.classifier import LoadedModel

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)  # seconds

REQUESTS = Counter("classifier_requests", "Requests answered", ["route", "status"])
SECONDS = Histogram("classifier_seconds", "Time of a stage", ["stage"], buckets=BUCKETS)
IN_FLIGHT = Gauge("classifier_in_flight", "Requests being answered", multiprocess_mode="livesum")
REJECTED = Counter("classifier_rejected", "Images and requests refused", ["code"])
PREDICTIONS = Counter("classifier_predictions", "Images by best class", ["model", "label"])
UNCERTAIN = Counter("classifier_uncertain", "Answers below the model's threshold", ["model"])
MODEL = Gauge(
    "classifier_model", "Models in service", ["name", "version"], multiprocess_mode="livemax"
)

log = logging.getLogger("rest_api.requests")
LINE = "classifier.line"  # where the environ of a request holds its line of the log
SANE_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def observed(wsgi: WSGIApplication) -> WSGIApplication:
    """Count, time and log every request of a Flask application.

    Around it, not by Flask's own hooks, which cost more.
    """

    def call(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter()
        given = environ.get("HTTP_X_REQUEST_ID", "")
        number = given if SANE_ID.fullmatch(given) else secrets.token_hex(16)
        environ[LINE] = {"time": round(time.time(), 3), "id": number}

        def start(reason: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            seconds = time.perf_counter() - began
            record(environ["werkzeug.request"], int(reason[:3]), seconds)
            return start_response(reason, [*headers, ("X-Request-ID", number)], exc_info)

        IN_FLIGHT.inc()
        try:
            return wsgi(environ, start)
        finally:
            IN_FLIGHT.dec()

    return call


@cache
def series(metric: Counter | Histogram, *labels: Any) -> Any:
    """A metric's series of some labels, found sooner than by the metric itself."""
    return metric.labels(*labels)


def record(asked: Request, status: int, seconds: float) -> None:
    """Count a request that has been answered, and log it."""
    route = asked.url_rule.rule if asked.url_rule else "none"
    series(REQUESTS, route, status).inc()
    series(SECONDS, "total").observe(seconds)
    line = {
        **asked.environ[LINE],
        "method": asked.method,
        "route": route,
        "status": status,
        "bytes": asked.content_length or 0,
        "ms": round(1000 * seconds, 2),
    }
    log.info("%s", msgspec.json.encode(line).decode())


def classified(
    asked: Request, model: str, label: str, uncertain: bool, decode: float, infer: float
) -> None:
    """Count an image that has been answered; `decode` and `infer` are seconds."""
    series(PREDICTIONS, model, label).inc()
    if uncertain:
        series(UNCERTAIN, model).inc()
    line = asked.environ[LINE]
    for stage, seconds in (("decode", decode), ("infer", infer)):
        series(SECONDS, stage).observe(seconds)
        line[f"{stage}_ms"] = round(line.get(f"{stage}_ms", 0) + 1000 * seconds, 2)


def count_models(models: Mapping[str, LoadedModel], number: int) -> None:
    """Say of models that they are in service (1), or no longer (0)."""
    for name, served in models.items():
        MODEL.labels(name, served.bundle.version).set(number)


def metrics() -> Response:
    """All processes' figures, in Prometheus's text format."""
    registry: CollectorRegistry = REGISTRY
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        for pid in {int(path.stem.rpartition("_")[2]) for path in Path(folder).glob("*.db")}:
            if not is_alive(pid):
                mark_process_dead(pid)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
