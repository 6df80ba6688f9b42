"""A folder of photos: what is found in it, what is refused, and how it is split."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, error_of, picture
from training.photos.inspect import (
    MIN_PHOTOS,
    Photo,
    PhotosError,
    by_name,
    group_near_duplicates,
    inspect_file,
    report,
    split,
    survey,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 12 photos."""
    for number, label in enumerate(("cat", "dog")):
        (tmp_path / label).mkdir()
        for i in range(12):
            picture(100 * number + i).save(tmp_path / label / f"{i:02}.png")
    return tmp_path


def reasons(folder: Path) -> dict[str, str]:
    return {path.name: reason for path, reason in survey(folder).skipped}


def test_photos_are_found_to_any_depth_and_hidden_ones_are_not(folder):
    (folder / "cat" / "more").mkdir()
    picture(50).save(folder / "cat" / "more" / "deep.jpg")
    (folder / "cat" / ".DS_Store").write_text("x")
    found = survey(folder)
    assert found.labels == ["cat", "dog"]
    assert len(found.photos) == 25
    assert found.skipped == []
    photo = next(photo for photo in found.photos if photo.path.name == "deep.jpg")
    assert (photo.label, photo.format, photo.mode, photo.size) == ("cat", "JPEG", "RGB", (96, 72))


def test_unreadable_files_are_skipped_with_the_reason(folder):
    whole = (folder / "cat" / "00.png").read_bytes()
    (folder / "cat" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "notes.txt").write_text("not a photo")
    (folder / "dog" / "empty.jpg").touch()
    found = reasons(folder)
    assert "truncated, damaged" in found["truncated.png"]
    assert "not an image" in found["notes.txt"]
    assert "empty" in found["empty.jpg"]


def test_copies_are_used_once_and_not_at_all_where_classes_differ(folder):
    shutil.copy(folder / "cat" / "00.png", folder / "cat" / "zz.png")
    shutil.copy(folder / "cat" / "01.png", folder / "dog" / "also.png")
    found = reasons(folder)
    assert found["zz.png"] == f"a copy of {folder / 'cat' / '00.png'}"
    assert found["01.png"] == found["also.png"] == "the same file lies in cat and dog"
    assert len(survey(folder).photos) == 24 - 1


def test_near_duplicates_stay_in_one_part_of_every_split(folder):
    for i in range(8):
        picture(i, (192, 144)).save(folder / "cat" / f"large{i}.jpg", quality=60)
    photos = survey(folder).photos
    for seed in range(5):
        parts = split(photos, seed)
        names = {
            part: {photo.path.stem for photo in some if photo.label == "cat"}
            for part, some in parts.items()
        }
        for i in range(8):
            pair = {f"{i:02}", f"large{i}"}
            assert sum(bool(pair & some) for some in names.values()) == 1


def test_near_duplicates_are_linked_by_hashes_that_differ_in_few_bits():
    def photo(name: str, perceptual_hash: int) -> Photo:
        return Photo(Path(name), "x", name, perceptual_hash, "PNG", "RGB", (1, 1))

    base = 0x0123456789ABCDEF
    flipped = base ^ (1 << 0 | 1 << 20 | 1 << 40 | 1 << 63)  # 4 bits
    other = base ^ 0b11111
    beyond = flipped ^ 0b110  # 2 bits from flipped, 6 from base
    photos = [photo("d", base), photo("b", flipped), photo("c", other), photo("a", beyond)]
    assert [p.group for p in group_near_duplicates(photos)] == ["a", "a", "c", "a"]


def test_photos_of_one_hash_are_near_duplicates_with_all_that_are_near_to_it():
    def photo(digest: str, hash_: int) -> Photo:
        return Photo(Path(digest), "cat", digest, hash_, "JPEG", "RGB", (1, 1))

    photos = [photo(digest, 0) for digest in "fed"] + [photo("c", 1), photo("b", 2**40 - 1)]
    assert [p.group for p in group_near_duplicates(photos)] == ["c", "c", "c", "c", "b"]


def test_photos_beside_the_folders_of_the_classes_are_noted(folder):
    picture(5).save(folder / "lost.png")
    notes = survey(folder).notes
    assert notes[0] == "files beside the folders of the classes, which are not used: 1"


def test_files_of_other_classes_are_no_reason_for_too_few_photos_of_one(folder):
    shutil.copy(folder / "cat" / "00.png", folder / "cat" / "copy.png")
    for photo in sorted((folder / "dog").iterdir())[:4]:
        photo.write_bytes(b"")
    with pytest.raises(PhotosError, match="dog holds 8 usable photos") as error:
        survey(folder)
    assert "dog/00.png" in str(error.value)
    assert "copy.png" not in str(error.value)


def test_what_is_used_but_odd_is_noted(folder):
    (folder / "cat" / "00.png").rename(folder / "cat" / "wrong.jpg")
    picture(1, (192, 144)).save(folder / "dog" / "like_a_cat.png")
    for i in range(60):
        picture(1000 + i).save(folder / "dog" / f"more{i}.png")
    notes = "\n".join(survey(folder).notes)
    assert f"files named .jpg that hold PNG: 1, such as {folder}/cat/wrong.jpg" in notes
    assert "near-duplicates in different classes" in notes
    assert "like_a_cat.png" in notes
    assert "dog has 73 photos, cat only 12" in notes


def test_photo_keeps_its_place_when_the_folder_grows_or_is_renamed(folder, tmp_path_factory):
    def places(folder: Path) -> dict[str, str]:
        parts = split(survey(folder).photos)
        return {photo.digest: part for part, some in parts.items() for photo in some}

    for i in range(60):
        picture(500 + i).save(folder / "cat" / f"a{i}.png")
        picture(700 + i).save(folder / "dog" / f"a{i}.png")
    before = places(folder)
    assert places(folder) == before
    for i in range(60):
        picture(2000 + i).save(folder / "cat" / f"new{i}.png")
    moved = folder.rename(tmp_path_factory.mktemp("moved") / "photos")
    after = places(moved)
    assert len(after) == len(before) + 60
    assert before.items() <= after.items()


def test_every_class_has_photos_in_every_part_however_few(folder):
    for seed in range(20):
        for some in split(survey(folder).photos, seed).values():
            assert {photo.label for photo in some} == {"cat", "dog"}


@pytest.mark.parametrize("number", [3, 4])
def test_groups_of_near_duplicates_leave_no_part_empty_however_few(number):
    photos = [
        Photo(Path(str(i)), "x", str(i), i, "PNG", "RGB", (1, 1), group=str(i % number))
        for i in range(12)
    ]
    for seed in range(200):
        assert all(split(photos, seed).values())


def test_near_duplicates_in_two_classes_stay_in_one_part_where_a_class_is_small():
    def photos_of(label: str, groups: list[str]) -> list[Photo]:
        paths = [f"{label}/{number}" for number in range(len(groups))]
        ids = zip(paths, groups, strict=True)
        return [Photo(Path(p), label, p, 0, "PNG", "RGB", (1, 1), group=g) for p, g in ids]

    few = photos_of("few", ["shared", *map(str, range(9))])
    many = photos_of("many", ["shared", *map(str, range(100, 199))])
    for seed in range(400):
        parts = split([*few, *many], seed)
        assert all({photo.label for photo in some} == {"few", "many"} for some in parts.values())
        of_shared = [p for p, some in parts.items() if any(x.group == "shared" for x in some)]
        assert len(of_shared) == 1, seed


def test_jpeg_of_a_phone_that_holds_a_second_picture_is_a_jpeg(tmp_path):
    second = {"save_all": True, "append_images": [picture(1)]}
    picture(0).save(tmp_path / "phone.jpg", "MPO", **second)
    assert inspect_file(tmp_path / "phone.jpg", "x").format == "JPEG"


def test_shares_of_a_large_class_are_those_that_are_declared():
    photos = [
        Photo(Path(str(i)), "x", str(i), i, "PNG", "RGB", (1, 1), group=str(i)) for i in range(4000)
    ]
    parts = split(photos)
    assert len(parts["train"]) == pytest.approx(2800, abs=100)
    assert len(parts["validation"]) == pytest.approx(600, abs=80)
    assert {p.digest for p in parts["test"]} != {p.digest for p in split(photos, 1)["test"]}


def test_unusable_folders_are_refused_by_name(folder):
    with pytest.raises(PhotosError, match="absent is not a folder"):
        survey(folder / "absent")
    with pytest.raises(PhotosError, match="at least two; it holds none"):
        survey(folder / "cat")
    (folder / "bird").mkdir()
    with pytest.raises(PhotosError, match="bird holds no files"):
        survey(folder)
    for i in range(MIN_PHOTOS - 1):
        picture(300 + i).save(folder / "bird" / f"{i}.png")
    (folder / "bird" / "x.txt").write_text("x")
    with pytest.raises(PhotosError, match=r"bird holds 9 usable photos(.|\n)*x.txt: This is not"):
        survey(folder)
    shutil.rmtree(folder / "bird")
    shutil.rmtree(folder / "dog")
    with pytest.raises(PhotosError, match="it holds only 'cat'"):
        survey(folder)


def test_parts_of_a_data_set_are_not_taken_for_classes(folder, tmp_path_factory):
    whole = tmp_path_factory.mktemp("set")
    for part in ("test", "train", "val"):
        shutil.copytree(folder, whole / part)
    with pytest.raises(
        PhotosError, match=r"holds the parts of a data set.*such as .*/train: which"
    ):
        survey(whole)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_class_named_in_another_encoding_than_utf8_is_refused(folder):
    (folder / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(PhotosError, match=r"is not named in UTF-8\. Rename it"):
        survey(folder)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_file_named_in_another_encoding_is_reported_in_utf8(folder):
    (folder / "cat" / os.fsdecode(b"caf\xe9.txt")).write_text("no photo")
    assert "caf\\udce9.txt" in report(survey(folder))


def test_class_may_be_named_as_standard_input(folder, monkeypatch):
    (folder / "cat").rename(folder / "-")
    monkeypatch.chdir(folder)
    assert survey(Path()).labels == ["-", "dog"]


def test_link_to_nowhere_is_skipped_with_the_reason(folder):
    (folder / "cat" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    assert "No such file" in reasons(folder)["gone.jpg"]


def test_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PhotosError, match="cannot be read: Permission denied"):
        survey(folder)


def test_class_whose_photos_are_all_near_duplicates_is_refused(folder):
    shutil.rmtree(folder / "cat")
    (folder / "cat").mkdir()
    for i in range(MIN_PHOTOS):
        picture(i % 2, (96 + i, 72)).save(folder / "cat" / f"{i}.png")
    with pytest.raises(PhotosError, match="cat are near-duplicates of 2 of them; 3 must differ"):
        survey(folder)


def test_folders_of_the_same_name_are_refused(tmp_path):
    named = {"food": tmp_path / "food", "scenes": tmp_path / "scenes"}
    assert by_name([*named.values(), named["food"]]) == named
    with pytest.raises(PhotosError, match="have the same name"):
        by_name([tmp_path / "food", tmp_path / "more" / "food"])


def test_folder_without_any_photo_is_refused_with_the_reason(folder):
    for photo in folder.rglob("*.png"):
        photo.rename(photo.with_suffix(".txt")).write_text("text")
    with pytest.raises(PhotosError, match=r"cat holds 0 usable photos(.|\n)*00.txt: This is not"):
        survey(folder)


def test_report_counts_every_class_and_lists_what_is_skipped(folder):
    (folder / "dog" / "notes.txt").write_text("not a photo")
    text = report(survey(folder))
    assert [line.split()[:2] for line in text.splitlines()[1:3]] == [["cat", "12"], ["dog", "12"]]
    assert "formats: 24 x PNG" in text
    assert "notes.txt: This is not an image" in text


def test_command_inspects_a_folder(folder):
    command = [sys.executable, "-m", "training.photos"]
    run = subprocess.run([*command, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cat" in run.stdout
    assert run.stderr == ""  # no progress bar where it is no terminal
    assert "at least two" in error_of("training.photos", folder / "cat")
