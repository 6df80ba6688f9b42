"""Inspect a folder that holds one folder of photos per class, and split it into three parts.

The split hashes each photo's content with the seed, so photos keep their part when the folder
grows or moves. Near-duplicates stay in one part. Adding a photo can move its near-duplicates, and
one other photo where a class is so small that a part would be empty.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import permutations
from pathlib import Path
from typing import Literal

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from rest_api.errors import RequestError
from rest_api.files import files_of, map_ahead
from rest_api.images import FORMATS, decode, read_image
from rest_api.settings import available_cores

Part = Literal["train", "validation", "test"]
SHARES: dict[Part, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}  # of each class
MIN_PHOTOS = 10  # of a class: fewer cannot be split in three
NEAR = 4  # largest Hamming distance between the 64-bit perceptual hashes of near-duplicates
PARTS_OF_DATA_SETS = {"train", "training", "val", "valid", "validation", "test", "testing"}
IMBALANCE = 5  # ratio of the largest to the smallest class that is worth a note


class PhotosError(Exception):
    """The folder cannot be trained on; the message says why, and what would be right."""


@dataclass(frozen=True)
class Photo:
    """A usable photo."""

    path: Path
    label: str
    digest: str  # SHA-256 of the file
    perceptual_hash: int  # 64 bits (imagehash.phash)
    format: str  # Pillow's name of the file format
    mode: str  # Pillow's mode of the file
    size: tuple[int, int]  # width, height in pixels
    group: str = ""  # shared by near-duplicates


@dataclass(frozen=True)
class Survey:
    """What inspect found in a folder."""

    photos: list[Photo]
    skipped: list[tuple[Path, str]]  # with the reason
    notes: list[str]  # oddities among the photos that are used

    @property
    def labels(self) -> list[str]:
        return sorted({photo.label for photo in self.photos})


def survey(folder: Path) -> Survey:
    """Inspect every file of a folder that holds one folder per class. Raises PhotosError."""
    files = class_files(folder)
    photos, unusable = inspect(files)
    photos, copies = deduplicate(photos)
    photos, skipped = group_near_duplicates(photos), sorted(unusable + copies)
    for label in sorted({label for _, label in files}):
        usable = sum(photo.label == label for photo in photos)
        if usable < MIN_PHOTOS:
            own = [each for each in skipped if each[0].is_relative_to(folder / label)]
            reasons = "".join(f"\n  {path}: {reason}" for path, reason in own[:10])
            raise PhotosError(
                f"{folder / label} holds {usable} usable photos; a class needs at least "
                f"{MIN_PHOTOS}, better 100. Add some, or remove the folder.{reasons}"
            )
        groups = {photo.group for photo in photos if photo.label == label}
        check_groups(len(groups), folder / label)
    beside = sum(path.is_file() and path.name[0] != "." for path in folder.iterdir())
    unused = [f"files beside the folders of the classes, which are not used: {beside}"] * (
        beside > 0
    )
    return Survey(photos, skipped, unused + notes(photos))


def check_groups(groups: int, folder: Path | str) -> None:
    """Raise PhotosError where the near-duplicates in a folder leave a part of the split empty."""
    if groups < len(SHARES):
        raise PhotosError(
            f"The photos in {folder} are near-duplicates of {groups} of them; {len(SHARES)} must "
            "differ, since near-duplicates are not divided between training and test."
        )


def class_files(folder: Path) -> list[tuple[Path, str]]:
    """Every file with its class, the name of its folder. Raises PhotosError."""
    try:
        if not folder.is_dir():
            raise PhotosError(f"{folder} is not a folder. Give one that holds a folder per class.")
        labels = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise PhotosError(f"{folder} cannot be read: {error.strerror}.") from error
    if {path.name.lower() for path in labels} <= PARTS_OF_DATA_SETS and len(labels) > 1:
        raise PhotosError(
            f"{folder} holds the parts of a data set. Give the folder of one part, such as "
            f"{next((each for each in labels if each.name[:5].lower() == 'train'), labels[0])}: "
            "which photos train and which test is decided here."
        )
    check_names(labels)
    if len(labels) < 2:
        names = f"only {labels[0].name!r}" if labels else "none"
        raise PhotosError(f"{folder} must hold a folder per class, at least two; it holds {names}.")
    files = []
    for label in labels:
        files += [(path, label.name) for path in files_in(label)]
    return files


def check_names(folders: Iterable[Path]) -> None:
    """Raise PhotosError where the name of a folder is not UTF-8, as that of a label has to be."""
    for folder in folders:
        if folder.name.encode(errors="ignore") != os.fsencode(folder.name):
            raise PhotosError(f"The folder {str(folder)!r} is not named in UTF-8. Rename it.")


def labelled_files(folder: Path, labels: Sequence[str]) -> list[tuple[Path, int]]:
    """The files of a folder that holds a folder a class, each with the index of its label.

    Raises PhotosError if a folder is not named as a label.
    """
    files = class_files(folder)
    if unknown := sorted({name for _, name in files}.difference(labels)):
        raise PhotosError(
            f"The folders in {folder} must be named as the model's labels ({', '.join(labels)}), "
            f"not {', '.join(unknown)}."
        )
    return [(file, labels.index(name)) for file, name in files]


def read(file: Path, image_size: int) -> Image.Image:
    """Decode a photo, for a network of that size. Raises PhotosError, naming the file."""
    try:
        return decode(file.read_bytes(), image_size)
    except (RequestError, OSError) as error:
        raise PhotosError(f"{file}: {error}") from error


def files_in(folder: Path) -> list[Path]:
    """All files below a folder except hidden ones, and the folders that cannot be read, sorted.

    Raises PhotosError if there are none.
    """
    if not folder.is_dir():
        raise PhotosError(f"{folder} is not a folder. Give one that holds photos.")
    files = sorted(map(Path, files_of([f"{folder}{os.sep}"])))  # without it, - is standard input
    if not files:
        raise PhotosError(f"{folder} holds no files. Put photos into it, or leave it out.")
    return files


def by_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by their names. Raises PhotosError where two have the same."""
    named: dict[str, Path] = {}
    for folder in folders:
        if named.setdefault(folder.name, folder) != folder:
            raise PhotosError(
                f"{named[folder.name]} and {folder} have the same name, by which they are told "
                "apart. Rename one."
            )
    return named


def check_separate(folders: Sequence[Path]) -> None:
    """Raise PhotosError where one folder is or lies in another: photos would count twice, or
    measure what they were trained for."""
    for one, other in permutations(folders, 2):
        if one.resolve().is_relative_to(other.resolve()):
            raise PhotosError(f"{one} lies in {other}. Give folders that are apart.")


def inspect(files: Sequence[tuple[Path, str]]) -> tuple[list[Photo], list[tuple[Path, str]]]:
    """Read every (path, label) as the server would: photos, and unusable files with the reason."""
    results = map_ahead(lambda file: inspect_file(*file), files, available_cores())
    found = list(tqdm(results, "inspect", len(files), unit="file", disable=None))
    skipped = [(path, r) for (path, _), r in zip(files, found, strict=True) if isinstance(r, str)]
    return [each for each in found if isinstance(each, Photo)], skipped


def inspect_file(path: Path, label: str) -> Photo | str:
    """The photo, or the reason why the file is unusable."""
    try:
        data = read_image(path)
        image = decode(data, 128)
    except (OSError, RequestError) as error:
        return str(error)
    with Image.open(BytesIO(data), formats=FORMATS) as file:
        form, mode, size = str(file.format), file.mode, file.size
    if form == "MPO":  # a JPEG that says it is the first of several, as phones write them
        form = "JPEG"
    return Photo(
        path, label, hashlib.sha256(data).hexdigest(), int(str(imagehash.phash(image)), 16),
        form, mode, size,
    )  # fmt: skip


def deduplicate(photos: Iterable[Photo]) -> tuple[list[Photo], list[tuple[Path, str]]]:
    """Keep one of several equal files, and none where equal files lie in different classes."""
    kept, skipped = [], []
    for copies in group_by(photos, "digest").values():
        classes = sorted({photo.label for photo in copies})
        if len(classes) > 1:
            reason = f"the same file lies in {' and '.join(classes)}"
            skipped += [(photo.path, reason) for photo in copies]
        else:
            kept.append(copies[0])
            skipped += [(photo.path, f"a copy of {copies[0].path}") for photo in copies[1:]]
    return kept, skipped


def group_near_duplicates(photos: Sequence[Photo]) -> list[Photo]:
    """Give photos whose perceptual hashes differ in at most NEAR bits the same group, also through
    others between them: the smallest digest in it."""
    from scipy.cluster.hierarchy import DisjointSet  # here, since importing it takes time

    groups = DisjointSet(photo.digest for photo in photos)
    first: dict[int, str] = {}  # the first photo of each hash
    for photo in photos:
        groups.merge(first.setdefault(photo.perceptual_hash, photo.digest), photo.digest)
    hashes, digests = np.array(list(first), np.uint64), list(first.values())
    for i, own in enumerate(hashes):
        for near in np.flatnonzero(np.bitwise_count(hashes[i + 1 :] ^ own) <= NEAR).tolist():
            groups.merge(digests[i], digests[i + 1 + near])
    leader = {digest: min(group) for group in groups.subsets() for digest in group}
    return [replace(photo, group=leader[photo.digest]) for photo in photos]


def notes(photos: Sequence[Photo]) -> list[str]:
    """Oddities among the photos that are used."""
    found, formats = [], Image.registered_extensions()
    odd = defaultdict(list)
    for photo in photos:
        if formats.get(photo.path.suffix.lower()) != photo.format:
            odd[photo.path.suffix or "no suffix", photo.format].append(photo.path)
    for (suffix, form), paths in odd.items():
        found.append(f"files named {suffix} that hold {form}: {len(paths)}, such as {paths[0]}")
    for group in group_by(photos, "group").values():
        if len({photo.label for photo in group}) > 1:
            names = ", ".join(str(photo.path) for photo in group)
            found.append(f"near-duplicates in different classes: {names}")
    counts = Counter(photo.label for photo in photos).most_common()
    (most, many), (least, few) = counts[0], counts[-1]
    if many > IMBALANCE * few:
        found.append(f"{most} has {many} photos, {least} only {few}: expect more errors on it")
    return found


def split(photos: Sequence[Photo], seed: int = 0) -> dict[Part, list[Photo]]:
    """Split each class by the hash of its groups.

    Where a part of a small class would be empty, the group nearest to its range moves there, if
    possible one that has no photos in another class, which would stay.
    """
    by_group = group_by(photos, "group").items()
    shared = {group for group, alike in by_group if len({photo.label for photo in alike}) > 1}
    parts: dict[Part, list[Photo]] = {part: [] for part in SHARES}
    edges: dict[Part, float] = {"test": 1.0, "validation": SHARES["train"], "train": 0.0}
    for _, members in sorted(group_by(photos, "label").items()):
        groups = group_by(members, "group")
        ranked = sorted((place_of(group, seed), group) for group in groups)
        chosen = {group: part_of(place) for place, group in ranked}
        for part, edge in edges.items():
            if part not in chosen.values():
                movable = [r for r in ranked if list(chosen.values()).count(chosen[r[1]]) > 1]
                nearest = min(movable, key=lambda r: (r[1] in shared, abs(r[0] - edge)))
                chosen[nearest[1]] = part
        for group, part in chosen.items():
            parts[part] += groups[group]
    return {part: sorted(chosen, key=lambda photo: photo.digest) for part, chosen in parts.items()}


def place_of(group: str, seed: int) -> float:
    """A pseudo-random number in [0, 1) that depends on the group and the seed."""
    return int(hashlib.sha256(f"{seed}/{group}".encode()).hexdigest()[:13], 16) / 16**13


def part_of(place: float) -> Part:
    if place < SHARES["train"]:
        return "train"
    return "validation" if place < SHARES["train"] + SHARES["validation"] else "test"


def group_by(photos: Iterable[Photo], attribute: str) -> dict[str, list[Photo]]:
    """Photos by the value of an attribute, in the order of their paths."""
    lists = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: photo.path):
        lists[getattr(photo, attribute)].append(photo)
    return dict(lists)


def report(found: Survey, seed: int = 0) -> str:
    """The survey as text, with the size of each part of the split."""
    parts = {part: Counter(p.label for p in ps) for part, ps in split(found.photos, seed).items()}
    rows = [("class", "photos", *SHARES, "median size", "near-duplicates")]
    for label, photos in sorted(group_by(found.photos, "label").items()):
        width, height = (sorted(p.size[i] for p in photos)[len(photos) // 2] for i in (0, 1))
        duplicates = len(photos) - len({photo.group for photo in photos})
        counts = [str(parts[part][label]) for part in SHARES]
        rows.append((label, str(len(photos)), *counts, f"{width} x {height}", str(duplicates)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
    for name in ("format", "mode"):
        values = Counter(getattr(photo, name) for photo in found.photos).most_common()
        lines.append(f"{name}s: {', '.join(f'{n} x {value}' for value, n in values)}")
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"skipped: {path}: {reason}" for path, reason in found.skipped]
    return printable("\n".join(lines))


def printable(text: str) -> str:
    """A text with escapes for what is not UTF-8 in the names of files."""
    return text.encode(errors="backslashreplace").decode()
