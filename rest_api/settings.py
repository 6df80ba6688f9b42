"""What can be set: one table, with safe defaults.

Each field of Settings is an option of `python rest_api/app.py`. The command line, its help and the
table in the documentation come from what stands here.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rest_api import __version__
from rest_api.bundle import FILENAMES, MANIFEST, Engine

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = ASSETS / "cifar10"
OTHER_MODELS = tuple(ASSETS / name for name in ("airplane-or-automobile", "scenes", "dishes"))
VERSION = f"cifar10-cnn {__version__}"
MIB = 2**20


class Option(NamedTuple):
    """How a setting is given on the command line; `help` and `default` are Markdown."""

    flag: str
    help: str
    default: str
    environment: Callable[[], Any]  # what is set there, or None
    parsing: dict[str, Any]  # for argparse


def option(
    default: Any,
    flag: str,
    about: str,
    shown: str = "",
    environment: Callable[[], Any] = lambda: None,
    **parsing: Any,
) -> Any:
    """A field of Settings; `shown` is its default in words."""
    shown = shown or (f"`{default}`" if default else "none")
    return field(
        default=default, metadata={"option": Option(flag, about, shown, environment, parsing)}
    )


def number(
    default: int, flag: str, about: str, low: int, high: int, unit: int = 1, **rest: Any
) -> Any:
    """A field of Settings that the command line has in whole numbers of `unit`."""
    rest = dict[str, Any](shown=str(default // unit), type=int_between(low, high, unit)) | rest
    return option(default, flag, about, **rest)


def int_between(low: int, high: int, unit: int = 1) -> Callable[[str], int]:
    """A parser of whole numbers, for argparse."""

    def parse(text: str) -> int:
        if text.isdecimal() and low <= int(text) <= high:
            return int(text) * unit
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def keys_in(path: str) -> list[str]:
    """The keys of a file, one a line, for argparse."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or len(line.split()) > 1:  # its words would be keys, easily guessed
            raise argparse.ArgumentTypeError(
                f"line {number} of {path} is no key: write one a line, without spaces or comments"
            )
    return checked(list(filter(None, lines)), path)


def keys_of_environment() -> list[str]:
    """Those of $API_KEYS, where it is set."""
    text = os.environ.get("API_KEYS")
    try:
        return checked(text.split(), "$API_KEYS") if text is not None else []
    except argparse.ArgumentTypeError as error:
        sys.exit(f"error: {error}")


def checked(keys: list[str], source: str) -> list[str]:
    if not keys:
        raise argparse.ArgumentTypeError(f"{source} holds no key, which would open the server")
    if not all(key.isascii() for key in keys):  # clients do not agree on how to send others
        raise argparse.ArgumentTypeError(f"{source} holds a key with other than ASCII characters")
    return keys


def model_path(text: str) -> Path:
    """For argparse: a path, or the folder of the shipped bundle of that name."""
    path = Path(text)
    # Path.exists() raises where a name is too long.
    if os.path.exists(path) or path.name != text:  # noqa: PTH110
        return path
    shipped = sorted(each.parent.name for each in ASSETS.glob(f"*/{MANIFEST}"))
    if text in shipped:
        return ASSETS / text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no path and no shipped model: these are {', '.join(shipped)}"
    )


def rate(text: str) -> str:
    from limits import parse_many

    try:
        parse_many(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 60/minute") from error
    return text


def storage(address: str) -> str:
    """The address of a storage that can be reached, for argparse."""
    from limits.errors import ConfigurationError
    from limits.storage import storage_from_string

    try:
        if storage_from_string(address, **storage_options(address)).check() is True:
            return address
    except (ConfigurationError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{address} cannot be used: {error}") from error
    raise argparse.ArgumentTypeError(f"{address} cannot be reached")


def storage_options(address: str) -> dict[str, Any]:
    """For limits: seconds that a request waits for Redis at most."""
    timeouts = {"socket_connect_timeout": 1, "socket_timeout": 1}
    return timeouts if address.startswith("redis") else {}


def origin(text: str) -> str:
    """An origin as browsers send it, or * for all, for argparse."""
    parts = urlsplit(text)
    if text != "*" and not (parts.netloc and text == f"{parts.scheme}://{parts.netloc}".lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin such as https://example.org")
    return text


def available_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """Of the server, and of the application in each of its processes."""

    host: str = option("127.0.0.1", "--host", "address to listen on")
    port: int = number(
        5000,
        "--port",
        "port to listen on",
        low=1,
        high=65_535,
        shown="`$PORT`, else 5000",
        environment=lambda: os.environ.get("PORT"),
    )
    models: tuple[Path, ...] = option(
        (DEFAULT_MODEL, *OTHER_MODELS),
        "--model",
        "a model bundle, a folder of them such as `rest_api/assets`, or the name of a shipped one; "
        "give it again for more, the first is the default",
        "`cifar10`, `airplane-or-automobile`, `scenes` and `dishes` of `rest_api/assets`",
        type=model_path,
        action="append",
    )
    workers: int = number(
        available_cores(), "--workers", "server processes", 1, 256, shown="one per core"
    )
    engine: Engine | None = option(  # noqa: RUF009
        None,
        "--engine",
        "`litert` (8-bit), `litert-float32` or `keras` (needs TensorFlow)",
        "each bundle's own",
        choices=list(FILENAMES),
    )
    max_body: int = number(10 * MIB, "--max-body", "MiB of a request", 1, 1000, MIB)
    max_pixels: int = number(  # each takes three bytes once decoded
        50_000_000, "--max-pixels", "millions of pixels of an image", 1, 178, 1_000_000
    )
    max_files: int = number(16, "--max-files", "images of a request", 1, 1000)
    threads: int = number(1, "--threads", "images at a time in each process", 1, 64)
    queue: int = number(
        32,
        "--queue",
        "requests that may wait in each process before others are refused with 503",
        low=0,
        high=1000,
    )
    api_keys: tuple[str, ...] = option(
        (),
        "--api-keys",
        "a file of keys, one a line, one of which a request must carry",
        "those in `$API_KEYS`, else open to all",
        environment=keys_of_environment,
        type=keys_in,
    )
    rate_limit: str = option(
        "", "--rate-limit", "requests of each address, such as `60/minute`", type=rate
    )
    rate_storage: str = option(
        "memory://",
        "--rate-storage",
        "where its counts are; with `memory://` each process counts for itself, a `redis://` "
        "address (`pip install redis`) makes them share",
        type=storage,
    )
    proxies: int = number(
        0,
        "--proxies",
        "proxies in front whose `X-Forwarded-For` names the client, for the rate limit",
        low=0,
        high=10,
    )
    cors_origins: tuple[str, ...] = option(
        (),
        "--cors",
        "an origin whose pages may send requests from a browser; again for more",
        type=origin,
        action="append",
    )
    drain: int = number(
        2, "--drain", 'seconds to answer "not ready" before stopping on SIGTERM', 0, 600
    )


def options() -> list[Option]:
    """Every option of the server, in the order of the fields."""
    return [option_of(each.name) for each in fields(Settings)]


def option_of(setting: str) -> Option:
    """The option of a field, by the field's name."""
    option: Option = Settings.__dataclass_fields__[setting].metadata["option"]
    return option


def as_markdown() -> str:
    """The rows of the documentation's table of options."""
    return "\n".join(f"| `{each.flag}` | {each.help} | {each.default} |" for each in options())


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line and the environment; a wrong one ends the program."""
    parser = argparse.ArgumentParser(description="Serve model bundles at POST /predict.")
    parser.add_argument("--version", action="version", version=VERSION)
    for setting in fields(Settings):
        each = option_of(setting.name)
        about = f"{each.help} ({each.default})".replace("`", "")
        default = each.environment()
        parser.add_argument(
            each.flag, dest=setting.name, help=about, default=default, **each.parsing
        )
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(arguments)).items()
        if value is not None
    }
    return Settings(**given)
