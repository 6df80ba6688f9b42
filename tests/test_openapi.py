"""The description of the API is true."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rest_api.app import create_app
from rest_api.bundle import load_bundle
from rest_api.security import GUARDED
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import server

CONFIG = f"""
[parameters] # others are answered by 404
"path.name" = "cifar10"
"path.version" = "{load_bundle(DEFAULT_MODEL).version}"

[checks]
# Not every string in base64 is an image: a schema cannot say so.
positive_data_acceptance.enabled = false
# 413 is how too many images are refused.
negative_data_rejection.expected-statuses = [400, 404, 405, 413, 415, 422]
"""


@pytest.mark.slow
def test_live_server_keeps_what_its_description_promises(tmp_path):
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with server("--workers", "1") as (_, port):
        run = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "run",
                f"http://127.0.0.1:{port}/openapi.json",
                "--max-examples=40",
                "--seed=1",
                "--continue-on-failure",
                "--generation-database=none",
                "--no-color",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stdout
    assert "20 selected / 20 total" in run.stdout


def test_description_names_every_way_to_send_an_image_and_every_refusal(client):
    document = client.get("/openapi.json").get_json()
    operation = document["paths"]["/predict"]["post"]
    assert list(operation["requestBody"]["content"]) == [
        "multipart/form-data",  # on the first, the documentation's page opens
        "image/*",
        "application/json",
    ]
    statuses = {"200", "400", "401", "404", "405", "408", "413", "415", "422", "429", "503"}
    assert set(operation["responses"]) == statuses
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "top",
        "model",
        "explain",
    }


def test_every_route_of_the_api_is_described(client):
    described = set(client.get("/openapi.json").get_json()["paths"])
    rules = {rule.rule for rule in create_app().url_map.iter_rules()}
    undescribed = {"/", "/docs", "/docs/<path:name>", "/static/<path:filename>"}
    rules = {re.sub(r"<(\w+)>", r"{\1}", rule) for rule in rules}
    assert described == rules - undescribed - {"/metrics", "/openapi.json"}


def test_routes_that_need_no_key_are_these():
    """Others, and those to come, are in GUARDED."""
    open_to_all = {
        *("/", "/docs", "/docs/<path:name>", "/static/<path:filename>"),
        *("/health/live", "/health/ready", "/metrics", "/openapi.json"),
        *("/v2", "/v2/health/live", "/v2/health/ready"),
    }
    rules = {rule.rule for rule in create_app().url_map.iter_rules()}
    assert rules - set(GUARDED) == open_to_all


@pytest.mark.parametrize("keys", [(), ("secret",)])
def test_description_says_where_a_key_is_needed(keys):
    app = create_app(Settings(api_keys=keys))
    document = app.test_client().get("/openapi.json").get_json()
    schemes = document["components"].get("securitySchemes", {})
    assert {scheme["type"] for scheme in schemes.values()} == (
        {"apiKey", "http"} if keys else set()
    )
    guarded = {
        path
        for path, methods in document["paths"].items()
        if any("security" in method for method in methods.values())
    }
    assert guarded == (
        {re.sub(r"<(?:.*?:)?(\w+)>", r"{\1}", rule) for rule in GUARDED} if keys else set()
    )


def test_description_costs_a_request_nothing():
    assert not [
        view for view in create_app().view_functions.values() if inspect.unwrap(view) != view
    ]
