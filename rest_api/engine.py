"""Run a bundle's network: a function from images to outputs, safe to call from threads."""

import contextlib
import importlib
import os
import queue
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rest_api.bundle import FILENAMES, MANIFEST, Bundle, BundleError, Engine, sizes_of


class Outputs(NamedTuple):
    """What a network returns for N images."""

    probabilities: np.ndarray  # (N, classes) float32 that sum to 1 in each row
    # (N,) float32, the larger, the more like the classes: the network's OOD score, or where it
    # returns none, the best class's probability
    scores: np.ndarray
    # (N, h, w, classes) float32, class activation maps, where the network returns them
    maps: np.ndarray | None = None
    # (N, embedding_size) float32, what the classes are computed of, where the network returns it
    features: np.ndarray | None = None


Predict = Callable[[np.ndarray], Outputs]  # of (N, side, side, 3) uint8


class Verdicts(NamedTuple):
    """Which of N images are not answered, and why."""

    none_of_these: np.ndarray  # (N,) bool: out of distribution
    uncertain: np.ndarray  # (N,) bool: that, or not sure which class


def load_engine(bundle: Bundle, engine: Engine | None = None, threads: int = 1) -> Predict:
    """Load the network and run it once, so that the first request finds it warm.

    None is the bundle's own choice. `litert` runs the 8-bit network, `litert-float32` the
    unquantised one, `keras` the .keras file (needs TensorFlow). Up to `threads` calls run at the
    same time. Raises BundleError.
    """
    engine = engine or bundle.engine
    content = bundle.file(engine)
    try:
        with silent_stderr():
            load = _keras if engine == "keras" else _litert
            predict = load(content, bundle, threads)
            for side in {*sizes_of(bundle.views, bundle.input_size)}:
                for _ in range(threads):  # each its own interpreter
                    probabilities = predict(np.zeros((1, side, side, 3), np.uint8)).probabilities
    except BundleError:
        raise
    except ImportError as error:
        needed = "requirements.txt" if engine == "keras" else "rest_api/requirements.txt"
        raise BundleError(
            f"The engine {engine!r} needs a package: pip install -r {needed} ({error})."
        ) from error
    except Exception as error:  # each library has its own
        reason = str(error).partition("\n")[0]
        raise BundleError(
            f"{bundle.path}: the engine {engine!r} cannot run the network: {reason}"
        ) from error
    if probabilities.shape != (1, len(bundle.labels)):
        raise BundleError(
            f"{bundle.path}: the network returns {probabilities.shape[-1]} classes, "
            f"model.json names {len(bundle.labels)}."
        )
    return predict


def name_outputs(outputs: Sequence[np.ndarray], bundle: Bundle) -> Outputs:
    """Tell probabilities, (N, classes), OOD scores, (N,), maps and features apart by their rank:
    those of features have one more, (N, 1, embedding_size).

    Raises BundleError if one is missing that model.json names.
    """
    by_rank = {each.ndim: each for each in outputs}
    size = bundle.embedding_size
    needed = {2: "class probabilities"}
    if bundle.ood:
        needed[1] = f"the score {bundle.ood.score!r}"
    if bundle.explains:
        needed[4] = "class activation maps"
    if size:
        needed[3] = f"{size} features"
    for rank, what in needed.items():
        if rank not in by_rank or (rank == 3 and by_rank[3].shape[-1] != size):
            raise BundleError(
                f"{bundle.path}: {MANIFEST} needs {what}, which the network does not return."
            )
    probabilities = by_rank[2]
    scores = by_rank[1] if bundle.ood else probabilities.max(-1)
    maps = by_rank[4] if bundle.explains else None
    return Outputs(probabilities, scores, maps, by_rank[3][:, 0] if size else None)


def mean_over_views(outputs: Sequence[Outputs], early_exit: float = 1.0) -> Outputs:
    """The probabilities and scores for N images from those for each of their views.

    Probabilities are those of the mean logits: their geometric mean, made to sum to 1. Where views
    disagree, the arithmetic mean is less sure than it is right. An image that `exits_early` has
    what its first view says.
    """
    smallest = np.finfo(np.float32).tiny
    logs = np.mean([np.log(np.maximum(each.probabilities, smallest)) for each in outputs], 0)
    geometric = np.exp(logs - logs.max(-1, keepdims=True))
    first, early = outputs[0], exits_early(outputs[0], early_exit)
    mean = geometric / geometric.sum(-1, keepdims=True)
    return Outputs(
        np.where(early[:, np.newaxis], first.probabilities, mean),
        np.where(early, first.scores, np.mean([each.scores for each in outputs], 0)),
    )


def exits_early(first: Outputs, early_exit: float) -> np.ndarray:
    """Which of N images, (N,) bool, need no other view than their first, whose outputs these are.

    It saves time on easy images, as in BranchyNet (Teerapittayanon et al. 2016, arXiv:1709.01686).
    """
    early: np.ndarray = first.probabilities.max(-1) > early_exit
    return early


def judge(outputs: Outputs, bundle: Bundle) -> Verdicts:
    """What the bundle's two thresholds say about images, whose views are combined."""
    out_of_distribution = outputs.scores < (bundle.ood.threshold if bundle.ood else -np.inf)
    return Verdicts(
        out_of_distribution, out_of_distribution | (outputs.probabilities.max(1) < bundle.threshold)
    )


def _litert(content: bytes, bundle: Bundle, threads: int) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    def make_interpreter() -> Any:
        # One thread each: two requests on two cores beat one request on both.
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        return interpreter

    # An interpreter is not thread-safe: lend it. One for each side: a change of it takes 0.1 ms.
    sides = {*sizes_of(bundle.views, bundle.input_size)}
    idle: queue.SimpleQueue[dict[int, Any]] = queue.SimpleQueue()
    for _ in range(threads):
        by_side = {side: make_interpreter() for side in sides}
        idle.put(by_side)
    any_side = next(iter(by_side.values()))
    (input_index,) = (tensor["index"] for tensor in any_side.get_input_details())
    output_indices = [tensor["index"] for tensor in any_side.get_output_details()]

    def predict(images: np.ndarray) -> Outputs:
        by_side = idle.get()
        interpreter = by_side.get(images.shape[1]) or next(iter(by_side.values()))
        try:
            if interpreter.tensor(input_index)().shape != images.shape:
                interpreter.resize_tensor_input(input_index, images.shape)
                interpreter.allocate_tensors()
            interpreter.tensor(input_index)()[...] = images  # uint8 to float32, without a copy
            interpreter.invoke()
            outputs = [interpreter.get_tensor(index) for index in output_indices]
            return name_outputs(outputs, bundle)
        finally:
            idle.put(by_side)

    return predict


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep native code from writing to stderr, whatever the log level; errors are exceptions.

    LiteRT tells that it uses XNNPACK, TensorFlow that it finds no GPU. Both write to the file
    descriptor, not to sys.stderr.
    """
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _keras(content: bytes, bundle: Bundle, _threads: int) -> Predict:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    keras, tf = importlib.import_module("keras"), importlib.import_module("tensorflow")
    tf.config.list_logical_devices()  # looks for GPUs now, not in the first call
    with tempfile.TemporaryDirectory() as folder:  # the bytes that were checked, and no others
        path = Path(folder, FILENAMES["keras"])
        path.write_bytes(content)
        network = keras.saving.load_model(path, compile=False, safe_mode=True)

    # A fixed signature: traced once, whatever the number of images. model.predict would add
    # tens of milliseconds to each call.
    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)]
    )
    def outputs(images: Any) -> Any:
        return keras.tree.flatten(network(images, training=False))

    def predict(images: np.ndarray) -> Outputs:
        return name_outputs([each.numpy() for each in outputs(images.astype(np.float32))], bundle)

    return predict
