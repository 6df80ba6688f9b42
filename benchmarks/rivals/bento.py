"""BentoML with two workers: `bentoml serve benchmarks.rivals.bento:Classifier --port PORT`."""

import bentoml
from PIL import Image

from benchmarks.rivals import network


@bentoml.service(workers=2)
class Classifier:
    def __init__(self) -> None:
        self.classify = network.load()

    @bentoml.api
    def predict(self, image: Image.Image) -> dict:
        return self.classify(image)
