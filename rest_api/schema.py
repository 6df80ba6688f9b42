"""What goes in and out of the API, declared once: for its answers and for /openapi.json."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from spectree import SpecTree
from spectree.model_adapter import get_msgspec_model_adapter

from rest_api import __version__
from rest_api.bundle import Engine

PREDICT = "/predict"
CARD = "/models/<name>/card"
V1 = "/v1/models/<name>"  # TensorFlow Serving's, see protocols.py
V1_VERSION = f"{V1}/versions/<version>"
V2 = "/v2/models/<name>"  # the Open Inference Protocol's
V2_VERSION = f"{V2}/versions/<version>"
# The expensive routes: requests for them queue, and are limited in their rate.
CLASSIFYING = (
    PREDICT,
    f"{V1}:predict",
    f"{V1_VERSION}:predict",
    f"{V2}/infer",
    f"{V2_VERSION}/infer",
)
HEALTH = ("/health/", "/v2/health/")  # what probes ask for begins so
PATTERNS = [(rule, re.compile(re.sub("<[a-z]+>", "[^/]+", rule))) for rule in CLASSIFYING]
Probability = Annotated[float, Meta(ge=0, le=1)]
Uncertain = Annotated[
    bool,
    Meta(description="whether the image is of none of these classes, or it is not clear which"),
]
NoneOfThese = Annotated[
    bool, Meta(description="whether the model's OOD score says that it is none of these classes")
]


class Prediction(msgspec.Struct):
    label: str
    probability: Probability


class Model(msgspec.Struct):
    """The model that made the predictions."""

    name: str
    version: str


class Problem(msgspec.Struct):
    code: Annotated[str, Meta(description="stable, for programs")]
    message: Annotated[str, Meta(description="what was wrong, and what would be right")]


class Failure(msgspec.Struct):
    success: Literal[False]
    error: Problem


class ErrorText(msgspec.Struct):
    """How a refusal looks in the protocols of others."""

    error: Annotated[str, Meta(description="what was wrong, and what would be right")]


class Explanation(msgspec.Struct):
    """Where in the image its best class was seen.

    The rows and columns divide the whole image as it is seen upright.
    """

    label: str
    grid: Annotated[
        list[list[Probability]],
        Meta(description="rows of columns: how much each part speaks for the class, 1 the most"),
    ]


class Result(msgspec.Struct):
    """One image of several: `predictions` and the two verdicts, or `error`."""

    filename: str
    success: bool
    predictions: list[Prediction] | UnsetType = UNSET
    uncertain: Uncertain | UnsetType = UNSET
    none_of_these: NoneOfThese | UnsetType = UNSET
    error: Problem | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class Answer(msgspec.Struct, kw_only=True):
    """To one image its `predictions`, most probable first; to several `results`, in their order."""

    success: Literal[True]
    predictions: list[Prediction] | UnsetType = UNSET
    uncertain: Uncertain | UnsetType = UNSET
    none_of_these: NoneOfThese | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
    results: list[Result] | UnsetType = UNSET
    model: Model


class OodScore(msgspec.Struct):
    """Out-of-distribution detection: the network returns a score beside the probabilities."""

    score: Annotated[str, Meta(description="how it is made")]
    threshold: Annotated[
        float, Meta(description="images whose score is below it are none of these")
    ]


class ServedModel(msgspec.Struct):
    name: str
    version: str
    default: bool
    labels: list[str]
    input_size: Annotated[int, Meta(description="side in pixels of the square that it takes")]
    threshold: Annotated[
        float, Meta(description="answers whose best probability is below it are uncertain")
    ]
    ood: OodScore | None
    explains: Annotated[bool, Meta(description="whether ?explain=true is answered")]
    engine: Annotated[
        Engine,
        Meta(description="which of its networks serves; its figure in accuracy has this name"),
    ]
    accuracy: Annotated[dict[str, Any], Meta(description="as model.json states it")]
    card: Annotated[bool, Meta(description="whether GET /models/NAME/card has its model card")]


class Models(msgspec.Struct):
    success: Literal[True]
    models: list[ServedModel]


class Health(msgspec.Struct):
    status: Literal["live", "ready"]
    version: Annotated[str, Meta(description="of the server")]


class PredictQuery(msgspec.Struct):
    top: Annotated[int, Meta(ge=1, description="classes to return (all)")] | UnsetType = UNSET
    model: Annotated[str, Meta(description="one of GET /models (the first)")] | UnsetType = UNSET
    explain: (
        Annotated[bool, Meta(description="whether to say where each image's best class was seen")]
        | UnsetType
    ) = UNSET


class Base64Image(msgspec.Struct, forbid_unknown_fields=True):
    image: Annotated[str, Meta(description="the bytes of an image file in base64")]


def classifying_route(path: str) -> str | None:
    """Which of the expensive routes a path leads to; known before Flask has seen the request."""
    if path == PREDICT:
        return PREDICT
    return next((rule for rule, pattern in PATTERNS if pattern.fullmatch(path)), None)


spec = SpecTree(
    "flask",
    title="Image classifier",
    version=__version__,
    mode="strict",
    annotations=False,
    model_adapter=get_msgspec_model_adapter(),
    validation_error_status=405,  # the one refusal that every route knows
    validation_error_model=Failure,
    naming_strategy=lambda model: model.__name__,
    nested_naming_strategy=lambda _parent, child: child,
    page_templates={},
)
