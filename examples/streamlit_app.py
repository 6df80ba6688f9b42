"""A classifier as a web application: `streamlit run examples/streamlit_app.py`.

Runs the default model in its own process, or that of a server: SERVER=http://localhost:5000.
"""

import os

import requests
import streamlit as st

from rest_api.classifier import load_model
from rest_api.errors import RequestError
from rest_api.settings import DEFAULT_MODEL

SERVER = os.environ.get("SERVER")


def classify(photo: bytes) -> tuple[dict[str, float], bool, bool]:
    """Probabilities by class, whether the photo shows none of them, whether it is uncertain."""
    if not SERVER:
        prediction = st.cache_resource(load_model)(DEFAULT_MODEL).classify(photo, top=3)
        return dict(prediction.classes), prediction.none_of_these, prediction.uncertain
    answer = requests.post(f"{SERVER}/predict?top=3", files={"image": photo}, timeout=30).json()
    if not answer["success"]:
        raise OSError(answer["error"]["message"])
    best = {each["label"]: each["probability"] for each in answer["predictions"]}
    return best, answer["none_of_these"], answer["uncertain"]


st.title("What is on this photo?")
photo = st.file_uploader("A photo")
if st.button("Process", disabled=photo is None):
    try:
        probabilities, none_of_these, uncertain = classify(photo.getvalue())
        best = max(probabilities, key=probabilities.get)
        st.image(photo)
        st.header("None of these" if none_of_these else "Not sure: " * uncertain + best)
        st.bar_chart(probabilities, horizontal=True)
    except (RequestError, OSError) as error:  # OSErrors are requests' own, too
        st.error(str(error))
