"""LitServe with two workers: `python -m benchmarks.serving.rivals.lit PORT`."""

import sys

import litserve
from PIL import Image

from benchmarks.serving.rivals import network


class Classifier(litserve.LitAPI):
    """One request at a time in each worker, as advised for a small model on a CPU."""

    def setup(self, device):
        self.classify = network.load()

    def decode_request(self, request):
        return Image.open(request["image"].file)

    def predict(self, image):
        return self.classify(image)

    def encode_response(self, answer):
        return answer


if __name__ == "__main__":
    api = Classifier(api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
