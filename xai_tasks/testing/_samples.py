"""A small picture and a small video, made in code: real files for results to point to."""

from __future__ import annotations

import struct
import zlib
from functools import cache

_SIDE = 64
"""Pixels, a multiple of 16, since H.264 codes blocks of 16 by 16."""


@cache
def sample_png() -> bytes:
    """Return a PNG of 64 by 64 pixels: a slope of colours."""
    rows = b"".join(
        b"\0" + b"".join(bytes((4 * x, 4 * y, 128)) for x in range(_SIDE)) for y in range(_SIDE)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows, 9)),
            (b"IEND", b""),
        )
    )


class _Bits:
    """Writes the fields of an H.264 header: fixed ones, and Exp-Golomb codes."""

    def __init__(self) -> None:
        self._text = ""

    def fixed(self, value: int, width: int) -> None:
        self._text += f"{value:0{width}b}"

    def golomb(self, *values: int) -> None:
        for value in values:
            code = f"{value + 1:b}"
            self._text += "0" * (len(code) - 1) + code

    def aligned(self, first: str = "") -> bytes:
        """Return the bytes so far, after `first` and zeros up to a whole byte."""
        text = self._text + first
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def _sequence_parameters() -> bytes:
    bits = _Bits()
    bits.fixed(0x42C00A, 24)  # constrained baseline, level 1
    bits.golomb(0, 0, 2, 0)  # id, frame numbers of 4 bits, output in decoding order, no references
    bits.fixed(0, 1)
    bits.golomb(_SIDE // 16 - 1, _SIDE // 16 - 1)
    bits.fixed(0b1000, 4)  # whole frames, nothing cropped, nothing said of how to show them
    return b"\x67" + bits.aligned("1")


def _picture_parameters() -> bytes:
    bits = _Bits()
    bits.golomb(0, 0)
    bits.fixed(0, 2)
    bits.golomb(0, 0, 0)
    bits.fixed(0, 3)
    bits.golomb(0, 0, 0)
    bits.fixed(0b100, 3)  # slices say whether they are smoothed
    return b"\x68" + bits.aligned("1")


def _frame() -> bytes:
    """Return a key frame whose blocks are not compressed: brightness as a slope, no colour."""
    data = b""
    for block in range((_SIDE // 16) ** 2):
        bits = _Bits()
        if block == 0:
            bits.golomb(0, 7, 0)  # first block, intra, picture parameters
            bits.fixed(0, 4)
            bits.golomb(0)
            bits.fixed(0, 2)
            bits.golomb(0, 1)  # quantiser as it is, no smoothing
        bits.golomb(25)  # a block as plain samples
        top, left = (16 * (block // (_SIDE // 16)), 16 * (block % (_SIDE // 16)))
        # From 16 up, so that no start code, which is made of zeros, can stand in them.
        luma = bytes(16 + (left + x + top + y) for y in range(16) for x in range(16))
        data += bits.aligned() + luma + b"\x80" * 128
    return b"\x65" + data + b"\x80"


def _box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I", 8 + len(data)) + kind + data


def _full_box(kind: bytes, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


@cache
def sample_mp4() -> bytes:
    """Return an MP4 of one second and 64 by 64 pixels: one H.264 frame."""
    sps, pps, frame = _sequence_parameters(), _picture_parameters(), _frame()
    sample = struct.pack(">I", len(frame)) + frame
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    settings = _box(
        b"avcC",
        b"\x01" + sps[1:4] + b"\xff\xe1" + struct.pack(">H", len(sps)) + sps,
        b"\x01" + struct.pack(">H", len(pps)) + pps,
    )
    codec = _box(
        b"avc1",
        bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HH", _SIDE, _SIDE),
        struct.pack(">IIIH", 72 << 16, 72 << 16, 0, 1) + bytes(32) + struct.pack(">Hh", 24, -1),
        settings,
    )
    kind = _box(b"ftyp", b"mp42", struct.pack(">I", 0), b"mp42isomavc1")

    def movie(offset: int) -> bytes:
        """Return the box that says what the frame at `offset` is."""
        table = _box(
            b"stbl",
            _full_box(b"stsd", 0, struct.pack(">I", 1), codec),
            _full_box(b"stts", 0, struct.pack(">III", 1, 1, 1000)),
            _full_box(b"stsc", 0, struct.pack(">IIII", 1, 1, 1, 1)),
            _full_box(b"stsz", 0, struct.pack(">III", 0, 1, len(sample))),
            _full_box(b"stco", 0, struct.pack(">II", 1, offset)),
        )
        media = _box(
            b"mdia",
            _full_box(b"mdhd", 0, struct.pack(">IIIIHH", 0, 0, 1000, 1000, 0x55C4, 0)),
            _full_box(b"hdlr", 0, bytes(4) + b"vide" + bytes(13)),
            _box(
                b"minf",
                _full_box(b"vmhd", 1, bytes(8)),
                _box(b"dinf", _full_box(b"dref", 0, struct.pack(">I", 1), _full_box(b"url ", 1))),
                table,
            ),
        )
        size = struct.pack(">II", _SIDE << 16, _SIDE << 16)
        track = _full_box(
            b"tkhd", 3, struct.pack(">IIIII", 0, 0, 1, 0, 1000), bytes(16), matrix, size
        )
        header = _full_box(
            b"mvhd",
            0,
            struct.pack(">IIIIIH", 0, 0, 1000, 1000, 1 << 16, 1 << 8),
            bytes(10) + matrix + bytes(24) + struct.pack(">I", 2),
        )
        return _box(b"moov", header, _box(b"trak", track, media))

    head = kind + movie(len(kind) + len(movie(0)) + 8)
    return head + _box(b"mdat", sample)
