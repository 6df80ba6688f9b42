"""BentoML with two workers: `bentoml serve benchmarks.serving.rivals.bento:Classifier`."""

import bentoml
from PIL import Image

from benchmarks.serving.rivals import network


@bentoml.service(workers=2)
class Classifier:
    def __init__(self) -> None:
        self.classify = network.load()

    @bentoml.api
    def predict(self, image: Image.Image) -> dict:
        return self.classify(image)
