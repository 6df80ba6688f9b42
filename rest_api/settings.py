"""What can be set, with safe defaults."""

from dataclasses import dataclass
from pathlib import Path

from rest_api.bundle import Engine

DEFAULT_MODEL = Path(__file__).parent / "assets" / "cifar10"


@dataclass(frozen=True)
class Settings:
    """Of one application; those of the server (address, processes) are not among them."""

    models: tuple[Path, ...] = (DEFAULT_MODEL,)  # bundles, or folders of bundles
    engine: Engine = "litert"
    max_body: int = 10 * 2**20  # bytes of a request
    max_pixels: int = 50_000_000  # of an image: it decodes to three bytes each
    max_files: int = 16  # images in a request
    threads: int = 1  # images at a time in each process; of those there is one for each core
    queue: int = 32  # requests that may wait for them, in each process
    api_keys: tuple[str, ...] = ()  # none: open to all
    rate_limit: str = ""  # such as "60/minute", for each address; none if empty
    rate_storage: str = "memory://"  # each process counts for itself; redis://… counts for all
    proxies: int = 0  # in front, whose X-Forwarded-For says who asks
    cors_origins: tuple[str, ...] = ()  # whose pages may ask from a browser
