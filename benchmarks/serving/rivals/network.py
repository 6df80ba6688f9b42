"""The shipped 8-bit network, called as a tutorial of LiteRT would; for servers other than ours.

Needs Pillow, NumPy and ai-edge-litert only.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

BUNDLE = Path(__file__).parents[3] / "rest_api" / "assets" / "cifar10"


def load() -> Callable[[Image.Image], dict]:
    """A function from a picture to the answer of the API; not for several threads at once."""
    manifest = json.loads((BUNDLE / "model.json").read_text())
    labels, side = manifest["labels"], manifest["input_size"]
    interpreter = Interpreter(str(BUNDLE / "model.int8.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    (into,) = interpreter.get_input_details()
    # The others are the OOD score, class activation maps and features.
    (out,) = (each for each in interpreter.get_output_details() if len(each["shape"]) == 2)

    def classify(image: Image.Image) -> dict:
        pixels = np.asarray(image.convert("RGB").resize((side, side)), np.float32)
        interpreter.set_tensor(into["index"], pixels[None])
        interpreter.invoke()
        probabilities = interpreter.get_tensor(out["index"])[0]
        predictions = [
            {"label": labels[i], "probability": float(probabilities[i])}
            for i in probabilities.argsort()[::-1]
        ]
        return {"success": True, "predictions": predictions}

    return classify
