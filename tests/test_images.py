import io
import zipfile

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.robustness.bombs import BOMBS, first_of_two
from rest_api import images
from rest_api.bundle import View
from rest_api.errors import RequestError
from rest_api.images import decode, to_square, to_views
from tests.support import FROG, encode, post


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, x * 0], axis=-1).astype(np.uint8))


def colours(data: bytes) -> np.ndarray:
    image = decode(data, 32)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_listed_format_is_read(fmt):
    expected = np.asarray(gradient()).astype(int)
    assert abs(colours(encode(gradient(), fmt)) - expected).mean() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_png_with_alpha_is_composited_on_white(mode):
    image = Image.new(mode, (40, 40), 0)  # black, fully transparent
    assert (colours(encode(image)) == 255).all()


def test_half_transparent_pixels_are_blended():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert abs(colours(encode(image)) - 127).max() <= 1


def test_palette_with_transparency_is_composited_on_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((0, 0), 1)
    rgb = colours(encode(image, transparency=0))
    assert rgb[4, 4].tolist() == [255, 255, 255]
    assert rgb[0, 0].tolist() == [0, 0, 200]


def test_cmyk_jpeg_keeps_its_colours():
    expected = np.asarray(gradient()).astype(int)
    assert abs(colours(encode(gradient().convert("CMYK"), "JPEG")) - expected).mean() < 6


def test_sixteen_bit_grey_is_scaled_to_eight():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    rgb = colours(encode(Image.fromarray(values.astype(np.uint16))))
    np.testing.assert_allclose(rgb[..., 0], values / 257, atol=1)


def test_transparent_shade_of_16_bit_grey_becomes_white_and_the_others_stay():
    shades = np.array([[0, 16384, 32768, 65535]], np.uint16).repeat(4, 0)
    data = encode(Image.fromarray(shades), transparency=16384)
    assert colours(data)[0, :, 0].tolist() == [0, 255, 127, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_become_rgb(mode):
    assert colours(encode(gradient().convert(mode))).shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_fixed_range_are_refused(mode):
    with pytest.raises(RequestError, match="Send 8 or 16 bits") as refused:
        decode(encode(gradient().convert(mode), "TIFF"), 32)
    assert refused.value.code == "unsupported_format"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("size", [(60, 40), (1300, 900)])  # of which the latter is shrunk
def test_every_mode_of_every_format_is_turned_upright(mode, fmt, size):
    stored = gradient(*size).convert(mode if mode != "I;16" or fmt in ("PNG", "TIFF") else "L")
    if mode in ("RGBA", "LA"):
        stored.putpixel((0, 0), (*stored.getpixel((0, 0))[:-1], 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    width, height = decode(encode(stored, fmt, exif=exif), 32).size
    assert width < height


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(60, 40), (1300, 900)])
def test_old_xmp_does_not_turn_a_tiff_that_its_tag_says_is_upright(mode, size):
    tags = {700: b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>', 274: 1}
    data = encode(gradient(*size).convert("L").convert(mode), "TIFF", tiffinfo=tags)
    width, height = decode(data, 32).size
    assert width > height


@pytest.mark.parametrize("size", [(60, 40), (1300, 900)])
@pytest.mark.parametrize(
    ("mode", "fmt"), [("P", "GIF"), ("P", "PNG"), ("L", "PNG"), ("RGB", "PNG")]
)
def test_what_was_transparent_can_be_written_again(size, mode, fmt):
    transparency = (0, 0, 0) if mode == "RGB" else 0
    data = encode(gradient(*size).convert(mode), fmt, transparency=transparency)
    assert decode(encode(decode(data, 128)), 128).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = gradient()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = colours(encode(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(rgb, np.asarray(upright))


@pytest.mark.parametrize("keyword", ["progressive", "transparency", "xmp", "exif", "dpi"])
def test_texts_in_a_png_are_no_more_than_texts(keyword):
    texts = PngInfo()
    texts.add_text(keyword, "a")
    rgb = colours(encode(gradient(), "PNG", pnginfo=texts))
    np.testing.assert_array_equal(rgb, np.asarray(gradient()))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_odd_exif_is_no_reason_to_refuse_an_image():
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a frog"
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.XResolution] = 72.0
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.01
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 30.0, 0.0)
    whole, rng = exif.tobytes(), np.random.default_rng(0)
    for _ in range(300):
        odd = bytearray(whole)
        odd[rng.integers(6, len(odd))] = rng.integers(256)
        assert decode(encode(gradient(), "JPEG", exif=bytes(odd)), 32).size in ((64, 48), (48, 64))


def test_large_jpeg_is_decoded_at_reduced_scale_and_looks_the_same():
    photo = gradient(2400, 1600)
    image = decode(encode(photo, "JPEG"), 32)
    assert image.size == (300, 200)  # an eighth, still over 2 x 32
    assert decode(encode(gradient(256, 256), "JPEG"), 32).size == (64, 64)  # just 2 x 32
    assert decode(encode(gradient(248, 248), "JPEG"), 32).size == (124, 124)
    small, full = (
        to_square(image, 32, "stretch").astype(int),
        to_square(photo, 32, "stretch").astype(int),
    )
    assert abs(small - full).max() <= 4


def test_empty_file_is_refused():
    with pytest.raises(RequestError, match="empty") as error:
        decode(b"", 32)
    assert (error.value.status, error.value.code) == (400, "empty_file")


@pytest.mark.parametrize("data", [b"hello", b"\x00" * 100, b"<svg></svg>", b"%PDF-1.7"])
def test_what_is_no_image_is_refused_naming_the_formats(data):
    with pytest.raises(RequestError, match="JPEG, PNG, WEBP") as error:
        decode(data, 32)
    assert (error.value.status, error.value.code) == (415, "unsupported_format")


def test_heic_is_refused_saying_what_reads_it(monkeypatch):
    monkeypatch.setattr(images, "FORMATS", ["JPEG", "PNG"])
    with pytest.raises(RequestError, match=r"This is HEIC, .* install the package pillow-heif"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", 32)


def test_formats_outside_the_list_are_never_tried():
    with pytest.raises(RequestError) as error:
        decode(encode(gradient(), "PPM"), 32)
    assert error.value.code == "unsupported_format"


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_truncated_file_is_refused_as_corrupt(fmt):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8))
    data = encode(noise, fmt)
    with pytest.raises(RequestError, match="damaged") as error:
        decode(data[: len(data) // 2], 32)
    assert (error.value.status, error.value.code) == (422, "corrupt_image")


def test_absurd_dimensions_are_refused_before_decoding():
    data = encode(Image.new("1", (2000, 1000)))
    with pytest.raises(RequestError, match="more than 1 megapixels") as error:
        decode(data, 32, max_pixels=1_000_000)
    assert (error.value.status, error.value.code) == (413, "too_many_pixels")


def test_decompression_bomb_is_refused():
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    with pytest.raises(RequestError) as error:
        decode(bomb.getvalue(), 32)
    assert error.value.code == "too_many_pixels"


def test_stretch_shows_the_whole_image():
    pixels = to_square(gradient(300, 100), 32, "stretch").astype(int)
    assert pixels.shape == (32, 32, 3)
    assert pixels[16, 0, 0] < 8
    assert pixels[16, 31, 0] > 247


def test_center_crop_keeps_the_largest_square_in_the_middle():
    pixels = to_square(gradient(300, 100), 32, "center_crop").astype(int)
    assert pixels[16, 0, 0] == pytest.approx(255 / 3, abs=5)
    assert pixels[16, 31, 0] == pytest.approx(255 * 2 / 3, abs=5)
    assert pixels[31, 16, 1] > 247


def test_letterbox_keeps_the_whole_image_and_its_shape():
    pixels = to_square(gradient(300, 100), 32, "letterbox").astype(int)
    assert (pixels[0] == 128).all()
    assert (pixels[31] == 128).all()
    assert pixels[16, 31, 0] > 247


@pytest.mark.parametrize("policy", ["stretch", "center_crop", "letterbox"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (32, 32), (4000, 3)])
def test_any_shape_fits(policy, size):
    assert to_square(Image.new("RGB", size), 32, policy).shape == (32, 32, 3)


def test_views_come_in_their_order_and_mirrored_where_asked():
    image = gradient(300, 100)
    views = View("stretch"), View("center_crop", mirror=True), View("letterbox"), View("stretch")
    pixels = to_views(image, 32, views)
    assert len(pixels) == 4
    np.testing.assert_array_equal(pixels[0], to_square(image, 32, "stretch"))
    np.testing.assert_array_equal(pixels[1][:, ::-1], to_square(image, 32, "center_crop"))
    np.testing.assert_array_equal(pixels[2], to_square(image, 32, "letterbox"))
    np.testing.assert_array_equal(pixels[3], pixels[0])


def test_view_with_a_size_of_its_own_has_that_size():
    image, sized = gradient(300, 100), View("center_crop", size=40)
    small, large = to_views(image, 32, [View("center_crop"), sized])
    np.testing.assert_array_equal(small, to_square(image, 32, "center_crop"))
    np.testing.assert_array_equal(large, to_square(image, 40, "center_crop"))


def test_square_image_is_resized_once_for_all_its_views(monkeypatch):
    resized = []
    monkeypatch.setattr(
        images, "to_square", lambda *given: resized.append(given) or to_square(*given)
    )
    views = View("stretch"), View("center_crop", mirror=True), View("letterbox")
    straight, mirrored, boxed = to_views(gradient(200, 200), 32, views)
    np.testing.assert_array_equal(straight, mirrored[:, ::-1])
    np.testing.assert_array_equal(straight, boxed)
    assert len(resized) == 1


def test_image_of_the_right_size_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_square(Image.fromarray(pixels), 32, "stretch"), pixels)


def test_ycck_jpeg_keeps_its_colours():
    """Photoshop's form: the inverted inks, the first three of them as luma and chroma."""
    *inks, black = gradient().convert("CMYK").split()
    luma_and_chroma = Image.merge("RGB", inks).convert("YCbCr").split()
    inverted = [channel.point(lambda value: 255 - value) for channel in luma_and_chroma]
    data = bytearray(encode(Image.merge("CMYK", [*inverted, black]), "JPEG"))  # inverts them again
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2  # YCCK
    expected = np.asarray(gradient()).astype(int)
    assert abs(colours(bytes(data)) - expected).mean() < 6


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP"])
def test_animation_is_read_as_its_first_frame(fmt):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert colours(data)[8, 8].tolist() == [255, 0, 0]


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_file_that_is_two_things_is_read_as_the_image_it_begins_with(fmt):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("evil.html", "<script>alert(1)</script>")
    data = encode(gradient(), fmt)
    np.testing.assert_array_equal(colours(data + zipped.getvalue()), colours(data))


def test_heic_is_read_where_its_package_is_installed():
    pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install pillow-heif")
    expected = np.asarray(gradient()).astype(int)
    assert abs(colours(encode(gradient(), "HEIF")) - expected).mean() < 6


def test_phone_photo_is_decoded_at_reduced_scale_with_the_same_answer(client):
    frog = Image.open(FROG).resize((4000, 3000), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 6, (3000, 4000, 3))
    photo = Image.fromarray((np.asarray(frog) + noise).clip(0, 255).astype(np.uint8))
    data = encode(photo, "JPEG", quality=90)
    assert decode(data, 32).size == (500, 375)  # an eighth: a 64th of the pixels
    reduced, full = (
        to_square(decode(data, 32), 32, "letterbox"),
        to_square(decode(data, 4000), 32, "letterbox"),
    )
    answers = [post(client, encode(Image.fromarray(each))).get_json() for each in (reduced, full)]
    best, other = (answer["predictions"][0] for answer in answers)
    assert best["label"] == other["label"] == "frog"
    assert best["probability"] == pytest.approx(other["probability"], abs=0.01)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BMP runs, one row", "a side of more than 65,535 pixels"),
        ("BMP runs", "run-length encoded BMP image has more than 0.25 megapixels"),
        ("TIFF 1 bit, 50 MP", "TIFF image has more than 25 megapixels"),
        ("WebP lossless, 50 MP", "WEBP image has more than 12 megapixels"),
        ("JPEG, 1,000 scans", "more than 100 scans"),
        ("MPO, 1,000 scans", "more than 100 scans"),
    ],
)
def test_costly_image_is_refused_by_its_header(name, reason):
    with pytest.raises(RequestError, match=reason) as error:
        decode(BOMBS[name](), 32)
    assert error.value.code in ("too_many_pixels", "too_complex")


@pytest.mark.parametrize("form", [bytes, first_of_two])
def test_progressive_jpeg_may_have_fewer_pixels_also_as_the_first_of_several(form):
    data = form(encode(gradient(), "JPEG", progressive=True, subsampling=0))
    assert decode(data, 32, max_pixels=64 * 48 * 5 // 4).size == (64, 48)
    with pytest.raises(RequestError, match="The progressive JPEG image has more than"):
        decode(data, 32, max_pixels=64 * 48)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_large_image_is_shrunk_in_tiles_to_the_same_pixels(mode):
    large = gradient(2500, 1300)
    if mode == "RGBA":
        large.putalpha(gradient(2500, 1300).getchannel(0))
    image = (
        Image.fromarray(np.asarray(large)[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else large.convert(mode)
    )
    shrunk = decode(encode(image, exif=turned()), 32)
    assert shrunk.size == (100, 193)  # a thirteenth, turned
    whole = images.to_rgb(Image.open(io.BytesIO(encode(image)))).transpose(
        Image.Transpose.ROTATE_270
    )
    difference = to_square(shrunk, 32, "stretch").astype(int) - to_square(whole, 32, "stretch")
    assert abs(difference).max() <= 3


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
