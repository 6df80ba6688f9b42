"""Ask a running server what is on a photo: `python rest_api/simple_request.py photo.jpg`."""

import argparse
import os
import sys
from pathlib import Path

import requests
from urllib3.exceptions import MaxRetryError

FROG = Path(__file__).parent / "frog.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify a photo with a running server.")
    parser.add_argument("photo", type=Path, nargs="?", default=FROG, help="default: a frog")
    url = f"http://127.0.0.1:{os.environ.get('PORT', 5000)}/predict"
    parser.add_argument("--url", default=url, help="of the server's /predict (%(default)s)")
    args = parser.parse_args()
    key = os.environ.get("API_KEY")
    headers = {"X-API-Key": key} if key else {}
    try:
        with args.photo.open("rb") as image:
            response = requests.post(args.url, files={"image": image}, headers=headers, timeout=30)
        answer = response.json()
        success = answer["success"]
    except (requests.JSONDecodeError, KeyError, TypeError):
        status = response.status_code
        sys.exit(f"error: What answers at {args.url} (status {status}) is not this server")
    except requests.exceptions.SSLError:
        sys.exit(f"error: No trusted https at {args.url}; use http:// for a server without it")
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        if isinstance(error.args[0], MaxRetryError):  # of attempts to connect
            sys.exit(f"error: No server answers at {args.url}; start one: make serve")
        sys.exit(f"error: The connection to {args.url} broke before its answer had come; try again")
    except OSError as error:  # requests' own errors are OSErrors too
        sys.exit(f"error: {error}")
    if not success:
        sys.exit(f"error: {answer['error']['message']}")
    if answer["none_of_these"]:
        print("none of these:")
    elif answer["uncertain"]:
        print("uncertain:")
    for rank, prediction in enumerate(answer["predictions"], 1):
        print(f"{rank:2}. {prediction['label']:<12} {prediction['probability']:.4f}")


if __name__ == "__main__":
    main()
