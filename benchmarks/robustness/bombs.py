"""Small files that cost whoever decodes them much: `python -m benchmarks.robustness.bombs`.

One for each class and format; each weighs under 10 MiB and asks for at most 50 megapixels, so that
no check of size alone refuses it. Sends them one after the other to a server with two workers, and
prints answers, seconds of CPU, and the memory of the largest process; then several at once.
"""

import contextlib
import functools
import json
import os
import struct
import threading
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from benchmarks.common import FROG, command_line, encoded, print_table
from benchmarks.serving.load import family, own_server, serving, stat_of

SIDE = 7071  # of a square of 50 megapixels


def png_chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width: int, height: int, bits: int, colour: int, *extra: bytes, passes: int = 1) -> bytes:
    """A PNG of zeros, with more chunks before its pixels; interlaced where it has seven passes."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * bits * samples + 7) // 8
    squeeze = zlib.compressobj(9)
    content, left = b"", (row + passes) * (height + passes)
    while left > 0:
        content += squeeze.compress(bytes(min(left, 2**22)))
        left -= 2**22
    content += squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, passes > 1)
    palette = [png_chunk(b"PLTE", bytes(768)), png_chunk(b"tRNS", bytes(256))]
    chunks = [
        png_chunk(b"IHDR", header),
        *(palette if colour == 3 else []),
        *extra,
        png_chunk(b"IDAT", content),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_of_two_headers(side: int) -> bytes:
    """A square PNG before whose header there is that of a small one."""
    data = png(side, side, 8, 2)
    small = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0))
    return data[:8] + small + data[8:]


def webp_lossless(width: int, height: int) -> bytes:
    """One colour in 34 bytes: https://developers.google.com/speed/webp/docs (VP8L)."""
    bits, at = 0, 0
    # sizes, alpha, version; no transform, no cache, no meta codes; five codes of one symbol each
    fields = [(width - 1, 14), (height - 1, 14), (1, 1), (0, 3), (0, 3), *[(1, 4)] * 5]
    for value, length in fields:
        bits |= value << at
        at += length
    stream = b"\x2f" + bits.to_bytes((at + 7) // 8, "little")
    stream += bytes(len(stream) % 2)
    chunk = b"VP8L" + struct.pack("<I", len(stream)) + stream
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def bmp(width: int, height: int, bits: int, compression: int, content: bytes) -> bytes:
    palette = bytes(range(256)) * 4 if bits == 8 else bytes(4 << bits) if bits < 8 else b""
    offset = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(content), 0, 0, offset)
    sizes = len(content), 0, 0, 0, 0
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, *sizes)
    return head + info + palette + content


def bmp_runs(width: int, height: int) -> bytes:
    """A pixel in each line, the rest skipped: pure Python in Pillow."""
    return bmp(width, height, 8, 1, b"\1\0\0\0" * height)


def tiff(
    width: int, height: int, entries: Iterable[tuple[int, int, int, int]], rest: bytes
) -> bytes:
    """Tags as (number, type, count, value or offset); `rest` begins at byte 8."""
    tags = sorted([(256, 4, 1, width), (257, 4, 1, height), *entries])
    at = 8 + len(rest)
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", at) + rest + directory


def tiff_strips(strips: int) -> bytes:
    """A strip for each row, all at the same place."""
    offsets = struct.pack("<I", 8) * strips
    entries = [
        (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1), (278, 3, 1, 1),
        (273, 4, strips, 8), (279, 4, strips, 8),
    ]  # fmt: skip
    return tiff(1, strips, entries, offsets)


def tiff_bits(side: int) -> bytes:
    """A square of one bit for a pixel, in one strip."""
    size = (side + 7) // 8 * side
    entries = [
        (258, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1), (278, 4, 1, side),
        (273, 4, 1, 8), (279, 4, 1, size),
    ]  # fmt: skip
    return tiff(side, side, entries, bytes(size))


def jpeg_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with more segments at its start."""
    extra = b"".join(struct.pack(">BBH", 255, kind, 2 + len(c)) + c for kind, c in segments)
    return data[:2] + extra + data[2:]


def jpeg_scans(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("RGB", size, (200, 30, 90)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def first_of_two(data: bytes) -> bytes:
    """A JPEG that says that another comes behind it: Pillow calls it MPO."""
    entries = [(0xB001, 4, 1, 2), (0xB002, 7, 32, 8)]  # number of images; where each lies
    return jpeg_segments(data, (0xE2, b"MPF\0" + tiff(8, 8, entries, bytes(32))))


def mpo_scans(size: tuple[int, int], scans: int) -> bytes:
    return first_of_two(jpeg_scans(size, scans))


def flat(fmt: str, mode: str, size: tuple[int, int], **options: object) -> bytes:
    """One colour, in any format that Pillow writes."""
    return encoded(Image.new(mode, size), fmt, **options)


def exif_tags(count: int = 5400) -> bytes:
    """EXIF whose every tag has the same 60 kB for its value."""
    tags = b"".join(struct.pack("<HHII", 0x9000 + i, 7, 60_000, 8) for i in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + tags


def exif_rationals(count: int = 1_230_000) -> bytes:
    """EXIF whose orientation is that many fractions."""
    tag = struct.pack("<HHHII", 1, 0x0112, 5, count, 26)
    return b"II*\0" + struct.pack("<I", 8) + tag + bytes(4) + struct.pack("<II", 7, 3) * count


def junk_in(data: bytes) -> bytes:
    """10 MB between two segments of a JPEG."""
    return data[:20] + bytes(10_000_000) + data[20:]


def text_bomb() -> bytes:
    """A megabyte of text in a kilobyte."""
    return png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9))


def of(call: Callable[..., bytes], *args: object, **options: object) -> Callable[[], bytes]:
    return functools.cache(functools.partial(call, *args, **options))


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG RGBA, one column": of(png, 1, 49_999_999, 8, 6),
    "PNG RGBA, one row": of(png, 49_999_999, 1, 8, 6),
    "PNG RGBA": of(png, SIDE, SIDE, 8, 6),
    "PNG RGBA, 16 bits": of(png, SIDE, SIDE, 16, 6),
    "PNG LA": of(png, SIDE, SIDE, 8, 4),
    "PNG palette with transparency": of(png, SIDE, SIDE, 8, 3),
    "PNG RGB": of(png, SIDE, SIDE, 8, 2),
    "PNG RGB with a transparent colour": of(png, SIDE, SIDE, 8, 2, png_chunk(b"tRNS", bytes(6))),
    "PNG grey, 16 bits": of(png, SIDE, SIDE, 16, 0),
    "PNG 1 bit": of(png, SIDE, SIDE, 1, 0),
    "PNG of two headers": of(png_of_two_headers, SIDE),
    "PNG interlaced": of(png, SIDE, SIDE, 8, 6, passes=7),
    "PNG, 800,000 chunks": of(png, 8, 8, 8, 2, png_chunk(b"tEXt", b"") * 800_000),
    "PNG, 800,000 IDAT": of(png, 8, 8, 8, 2, png_chunk(b"IDAT", b"") * 800_000),
    "PNG, compressed texts": of(png, 8, 8, 8, 2, *[text_bomb()] * 60),
    "PNG, EXIF tags": of(png, 8, 8, 8, 2, png_chunk(b"eXIf", exif_tags())),
    "PNG, EXIF of fractions": of(png, 8, 8, 8, 2, png_chunk(b"eXIf", exif_rationals())),
    "APNG, 50 MP": of(png, SIDE, SIDE, 8, 6, png_chunk(b"acTL", struct.pack(">II", 2, 0))),
    "WebP lossless, 50 MP": of(webp_lossless, 16383, 3051),
    "WebP lossless, 37 MP": of(webp_lossless, 12000, 3051),
    "WebP lossless, 12 MP": of(webp_lossless, 4000, 3000),
    "WebP lossy, 12 MP": of(flat, "WEBP", "RGBA", (4000, 3000), method=0),
    "GIF, 50 MP": of(flat, "GIF", "P", (65_000, 760)),
    "GIF with transparency": of(flat, "GIF", "P", (SIDE, SIDE), transparency=0),
    "AVIF RGBA, 12 MP": of(flat, "AVIF", "RGBA", (4000, 3000), speed=10),
    "AVIF RGB, 25 MP": of(flat, "AVIF", "RGB", (5000, 5000), speed=10),
    "BMP runs, one row": of(bmp_runs, 49_000_000, 1),
    "BMP runs": of(bmp_runs, SIDE, SIDE),
    "BMP 1 bit": of(bmp, SIDE, SIDE, 1, 0, bytes((SIDE + 31) // 32 * 4 * SIDE)),
    "BMP RGBA, header only": of(bmp, SIDE, SIDE, 32, 0, b""),
    "TIFF 1 bit, 50 MP": of(tiff_bits, SIDE),
    "TIFF 1 bit, 25 MP": of(tiff_bits, 5000),
    "TIFF, 1,200,000 strips": of(tiff_strips, 1_200_000),
    "TIFF, 2,400,000 strips": of(tiff_strips, 2_400_000),
    "TIFF deflate RGBA": of(flat, "TIFF", "RGBA", (5000, 5000), compression="tiff_adobe_deflate"),
    "TIFF LZW RGB, turned": of(
        flat, "TIFF", "RGB", (5000, 5000), compression="tiff_lzw", tiffinfo={274: 6}
    ),
    "TIFF JPEG": of(flat, "TIFF", "RGB", (5000, 5000), compression="jpeg"),
    "TIFF group 4": of(flat, "TIFF", "1", (5000, 5000), compression="group4"),
    "JPEG, 1,000 scans": of(jpeg_scans, (2000, 2000), 1000),
    "MPO, 1,000 scans": of(mpo_scans, (2000, 2000), 1000),
    "JPEG progressive 4:4:4": of(
        flat, "JPEG", "RGB", (SIDE, SIDE), progressive=True, subsampling=0
    ),
    "JPEG progressive, 40 MP": of(
        flat, "JPEG", "RGB", (6300, 6300), progressive=True, subsampling=0
    ),
    "JPEG progressive 4:2:0": of(flat, "JPEG", "RGB", (SIDE, SIDE), progressive=True),
    "JPEG baseline": of(flat, "JPEG", "CMYK", (SIDE, SIDE)),
    "JPEG baseline, 65,000 x 760": of(flat, "JPEG", "RGB", (65_000, 760)),
    "JPEG, 2,500,000 comments": of(jpeg_segments, FROG.read_bytes(), *[(0xFE, b"")] * 2_500_000),
    "JPEG, 10 MB of nothing": of(junk_in, FROG.read_bytes()),
    "JPEG, EXIF tags": of(jpeg_segments, FROG.read_bytes(), (0xE1, b"Exif\0\0" + exif_tags())),
    "JPEG, MPF tags": of(jpeg_segments, FROG.read_bytes(), (0xE2, b"MPF\0" + exif_tags())),
}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--connections", type=int, default=16, help="at once (%(default)s)")
    args = parser.parse_args()
    with serving(own_server("--workers", "2")) as (address, pid):
        watch = Watch(pid)
        print_table(
            ["file", "bytes", "answer", "CPU (s)", "most of a process (MB)"],
            (measured(name, address, pid, watch) for name in BOMBS),
        )
        watch.reset()
        with ThreadPoolExecutor(args.connections) as pool:
            codes = Counter(pool.map(lambda name: send(address, BOMBS[name]()), list(BOMBS) * 2))
        print(f"{args.connections} at once: {dict(codes)}; {watch}")


def measured(name: str, address: str, pid: int, watch: "Watch") -> list[str]:
    data = BOMBS[name]()
    watch.reset()
    before = cpu_seconds(pid)
    answer = send(address, data)
    seconds = cpu_seconds(pid) - before
    return [name, f"{len(data):,}", answer, f"{seconds:.2f}", f"{watch.process:.0f}"]


def send(address: str, data: bytes) -> str:
    """POST a file; "200", or status and code."""
    headers = {"Content-Type": "image/x"}
    request = urllib.request.Request(f"{address}/predict", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return str(response.status)
    except urllib.error.HTTPError as error:
        return f"{error.code} {json.load(error)['error']['code']}"


def cpu_seconds(pid: int) -> float:
    """What the processes of a server have worked, those that it has replaced included."""
    stats = [stat_of(each) for each in family(pid)]
    return sum(int(n) for stat in stats for n in stat[11:15]) / os.sysconf("SC_CLK_TCK")


class Watch:
    """The most megabytes that one process and all processes of a server have held."""

    def __init__(self, pid: int):
        self.pid = pid
        self.ended = threading.Event()
        self.reset()
        threading.Thread(target=self.look, daemon=True).start()

    def reset(self) -> None:
        self.process = self.all = 0.0

    def look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        while not self.ended.wait(0.01):
            with contextlib.suppress(OSError):  # one of them has just ended
                sizes = [int(stat_of(each)[21]) * page for each in family(self.pid)]
                self.process = max(self.process, *sizes)
                self.all = max(self.all, sum(sizes))

    def __str__(self) -> str:
        return f"at most {self.process:.0f} MB of a process, {self.all:.0f} MB of all"


if __name__ == "__main__":
    main()
