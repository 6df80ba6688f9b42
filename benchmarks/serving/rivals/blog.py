"""The pattern of the Keras blog: Flask's own server, `model.predict` for each request.

python -m benchmarks.serving.rivals.blog PORT
"""

import io
import sys
from pathlib import Path

import flask
import keras
import numpy as np
from PIL import Image

MODEL = Path(__file__).parents[3] / "rest_api" / "assets" / "cifar10" / "model.keras"
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

app = flask.Flask(__name__)
model = keras.saving.load_model(MODEL, compile=False)


def prepare_image(image: Image.Image, target: tuple[int, int]) -> np.ndarray:
    """A batch of one, (1, height, width, 3) float32."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.expand_dims(keras.utils.img_to_array(image.resize(target)), axis=0)


@app.post("/predict")
def predict() -> flask.Response:
    data = {"success": False}
    if flask.request.files.get("image"):
        image = Image.open(io.BytesIO(flask.request.files["image"].read()))
        probabilities, *_ = model.predict(prepare_image(image, (32, 32)), verbose=0)
        data["predictions"] = [
            {"label": label, "probability": float(p)}
            for label, p in zip(LABELS, probabilities[0], strict=True)
        ]
        data["success"] = True
    return flask.jsonify(data)


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
