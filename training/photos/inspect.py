"""A folder of photos, one folder a class: what is in it, what is unusable, and how it is split.

    python -m training.photos PHOTOS      # only look

A photo's place in the split depends on its content and the seed: a re-run keeps it, and so does a
folder that has grown. Photos that look alike stay together; one that is added can move those that
it looks like, and, where a class is so small that a part of it would be empty, one of the others.
"""

import argparse
import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Literal

import imagehash
from PIL import Image
from tqdm import tqdm

from rest_api.errors import RequestError
from rest_api.images import FORMATS, decode

Part = Literal["train", "validation", "test"]
SHARES: dict[Part, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}  # of each class
MIN_PHOTOS = 10  # of a class: fewer cannot be split in three
NEAR = 4  # of 64 bits of the perceptual hash, in which two photos that look alike may differ
IMBALANCE = 5  # times as many photos in one class as in another are worth a word
EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
    "AVIF": {".avif"},
    "HEIF": {".heic", ".heif"},
}


class PhotosError(Exception):
    """Nothing can be trained on the folder; the message says why, and what would do."""


@dataclass(frozen=True)
class Photo:
    """A photo that can be used."""

    path: Path
    label: str
    digest: str  # SHA-256 of the file
    looks: int  # perceptual hash, 64 bits
    format: str  # as Pillow calls it
    mode: str  # Pillow's, of the file
    size: tuple[int, int]  # width, height in pixels
    group: str = ""  # shared by photos that look alike


@dataclass(frozen=True)
class Survey:
    """What a look at a folder found."""

    photos: list[Photo]
    skipped: list[tuple[Path, str]]  # and why
    notes: list[str]  # what is used, but should be known

    @property
    def labels(self) -> list[str]:
        return sorted({photo.label for photo in self.photos})


def survey(folder: Path) -> Survey:
    """Look at every file of a folder that holds one folder a class. Raises PhotosError."""
    files = class_files(folder)
    found, skipped = look(files)
    photos, doubles = without_copies(found)
    photos = grouped(photos)
    result = Survey(photos, sorted(skipped + doubles), notes(photos))
    for label in sorted({label for _, label in files}):
        usable = sum(photo.label == label for photo in photos)
        if usable < MIN_PHOTOS:
            why = "".join(f"\n  {path}: {reason}" for path, reason in result.skipped[:10])
            raise PhotosError(
                f"{folder / label} holds {usable} photos that can be used; a class needs at least "
                f"{MIN_PHOTOS}, and 100 are good. Add some, or take the folder away.{why}"
            )
    return result


def class_files(folder: Path) -> list[tuple[Path, str]]:
    """Every file with its class, the name of its folder. Raises PhotosError."""
    if not folder.is_dir():
        raise PhotosError(f"{folder} is no folder. Give one that holds a folder of photos a class.")
    labels = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if len(labels) < 2:
        names = f"only {labels[0].name!r}" if labels else "none"
        raise PhotosError(
            f"{folder} must hold a folder for each class, two at least; it holds {names}."
        )
    files = []
    for label in labels:
        inside = files_in(label)
        if not inside:
            raise PhotosError(f"{label} is empty. Put photos of the class into it, or remove it.")
        files += [(path, label.name) for path in inside]
    return files


def files_in(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, sorted."""
    inside = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in inside if not any(n[0] == "." for n in p.relative_to(folder).parts))


def look(files: Sequence[tuple[Path, str]]) -> tuple[list[Photo], list[tuple[Path, str]]]:
    """Read every file as the server would; returns the photos, and the others with the reason."""
    photos, skipped = [], []
    with ThreadPoolExecutor() as threads:
        looks = threads.map(lambda file: look_at(*file), files)
        for (path, _), seen in zip(files, tqdm(looks, "look", len(files)), strict=True):
            if isinstance(seen, Photo):
                photos.append(seen)
            else:
                skipped.append((path, seen))
    return photos, skipped


def look_at(path: Path, label: str) -> Photo | str:
    """A photo, or why the file is none."""
    try:
        data = path.read_bytes()
        image = decode(data, side=128)
    except (OSError, RequestError) as error:
        return str(error)
    with Image.open(BytesIO(data), formats=FORMATS) as file:
        form, mode, size = str(file.format), file.mode, file.size
    return Photo(
        path, label, hashlib.sha256(data).hexdigest(), int(str(imagehash.phash(image)), 16),
        form, mode, size,
    )  # fmt: skip


def without_copies(photos: Iterable[Photo]) -> tuple[list[Photo], list[tuple[Path, str]]]:
    """Leave out all but the first of equal files, and all of those that lie in several classes."""
    kept, skipped = [], []
    for copies in by(photos, "digest").values():
        classes = sorted({photo.label for photo in copies})
        if len(classes) > 1:
            reason = f"the same file lies in {' and '.join(classes)}"
            skipped += [(photo.path, reason) for photo in copies]
        else:
            kept.append(copies[0])
            skipped += [(photo.path, f"a copy of {copies[0].path}") for photo in copies[1:]]
    return kept, skipped


def grouped(photos: Sequence[Photo]) -> list[Photo]:
    """Give photos that look alike the same group: the least digest among them.

    Alike are perceptual hashes that differ in up to NEAR bits; two such agree in one of NEAR + 1
    runs of bits at least, so only photos that share a run are compared.
    """
    leader = {photo.digest: photo.digest for photo in photos}

    def leader_of(digest: str) -> str:
        while leader[digest] != digest:
            digest = leader[digest]
        return digest

    width = -(-64 // (NEAR + 1))
    for run in range(NEAR + 1):
        sharing = defaultdict(list)
        for photo in photos:
            sharing[photo.looks >> (run * width) & (1 << width) - 1].append(photo)
        for alike in sharing.values():
            for one, other in combinations(alike, 2):
                if (one.looks ^ other.looks).bit_count() <= NEAR:
                    first, last = sorted((leader_of(one.digest), leader_of(other.digest)))
                    leader[last] = first
    return [replace(photo, group=leader_of(photo.digest)) for photo in photos]


def notes(photos: Sequence[Photo]) -> list[str]:
    """What is used all the same, but should be known."""
    found = []
    for photo in photos:
        if photo.path.suffix.lower() not in EXTENSIONS.get(photo.format, ()):
            found.append(f"{photo.path} is a {photo.format} by its content")
    for alike in by(photos, "group").values():
        if len({photo.label for photo in alike}) > 1:
            names = ", ".join(str(photo.path) for photo in alike)
            found.append(f"these look alike but lie in different classes: {names}")
    counts = Counter(photo.label for photo in photos).most_common()
    (most, many), (least, few) = counts[0], counts[-1]
    if many > IMBALANCE * few:
        found.append(f"{most} has {many} photos and {least} {few}: the rare class is learnt less")
    return found


def split(photos: Sequence[Photo], seed: int = 0) -> dict[Part, list[Photo]]:
    """Divide each class by the hash of its groups.

    Where that leaves a small class without photos in a part, the group that is nearest moves there.
    """
    parts: dict[Part, list[Photo]] = {part: [] for part in SHARES}
    for _, members in sorted(by(photos, "label").items()):
        groups = by(members, "group")
        ranked = sorted((place_of(group, seed), group) for group in groups)
        chosen = {group: part_of(place) for place, group in ranked}
        for part, edge in (("test", 1.0), ("validation", SHARES["train"])):
            if part not in chosen.values():
                movable = [r for r in ranked if list(chosen.values()).count(chosen[r[1]]) > 1]
                chosen[min(movable, key=lambda r: abs(r[0] - edge))[1]] = part
        for group, part in chosen.items():
            parts[part] += groups[group]
    return {part: sorted(chosen, key=lambda photo: photo.digest) for part, chosen in parts.items()}


def place_of(group: str, seed: int) -> float:
    """A number from 0 to 1 that is a group's own."""
    return int(hashlib.sha256(f"{seed}/{group}".encode()).hexdigest()[:13], 16) / 16**13


def part_of(place: float) -> Part:
    if place < SHARES["train"]:
        return "train"
    return "validation" if place < SHARES["train"] + SHARES["validation"] else "test"


def by(photos: Iterable[Photo], attribute: str) -> dict[str, list[Photo]]:
    """Photos by the value of an attribute, in the order of their paths."""
    lists = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: photo.path):
        lists[getattr(photo, attribute)].append(photo)
    return dict(lists)


def report(found: Survey, seed: int = 0) -> str:
    """The survey as a person reads it."""
    parts = {part: Counter(p.label for p in ps) for part, ps in split(found.photos, seed).items()}
    rows = [("class", "photos", *SHARES, "median size", "alike")]
    for label, photos in sorted(by(found.photos, "label").items()):
        width, height = (sorted(p.size[i] for p in photos)[len(photos) // 2] for i in (0, 1))
        alike = len(photos) - len({photo.group for photo in photos})
        counts = [str(parts[part][label]) for part in SHARES]
        rows.append((label, str(len(photos)), *counts, f"{width} x {height}", str(alike)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
    for name in ("format", "mode"):
        counts = Counter(getattr(photo, name) for photo in found.photos).most_common()
        lines.append(f"{name}s: {', '.join(f'{n} x {value}' for value, n in counts)}")
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"skipped: {path}: {reason}" for path, reason in found.skipped]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Look at a folder of photos, one folder a class.")
    parser.add_argument("photos", type=Path, help="the folder")
    args = parser.parse_args()
    try:
        print(report(survey(args.photos)))
    except PhotosError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
