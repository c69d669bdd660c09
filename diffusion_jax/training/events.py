"""TensorBoard event files, written without TensorFlow, TensorBoard or PyTorch: scalars and pictures.

A file is a sequence of records: the length of a message, a checksum of the length, the message, a checksum of the message. A
message is a protocol buffer, whose fields are few enough to be spelt out here (event.proto and summary.proto of TensorBoard).
"""

from __future__ import annotations

import io
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def _table() -> list[int]:
    """The 256 remainders of CRC-32C (Castagnoli), reflected."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes (RFC 3720, appendix B.4).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _checked(data: bytes) -> bytes:
    """The bytes and their checksum, rotated and shifted as records have it."""
    crc = crc32c(data)
    return data + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    value, out = value & 0xFFFFFFFFFFFFFFFF, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | float | bytes | np.float64) -> bytes:
    """A field of a protocol buffer: whole numbers are varints, np.float64 has 8 bytes, other floats 4."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, np.float64):
        return _varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, float):
        with np.errstate(over="ignore"):  # beyond the range of float32 it is infinite
            return _varint(number << 3 | 5) + np.float32(value).tobytes()
    return _varint(number << 3) + _varint(value)


class EventFile:
    """An event file in a folder, each write flushed at once: a background writer would hang or hide the error of a full disk.

    Args:
      folder: of one TensorBoard run; made if need be.
      suffix: of the file's name; two files that are opened in one second must differ in it.
      purge_step: TensorBoard hides what earlier files of the folder say of this step and later ones; None hides nothing.

    Raises:
      OSError: the file cannot be written; so do the methods.
    """

    def __init__(self, folder: str | os.PathLike, suffix: str = "", purge_step: int | None = None) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}{suffix}"
        self._file = (Path(folder) / name).open("ab")
        self._write(purge_step or 0, _field(3, b"brain.Event:2"))
        if purge_step is not None:
            self._write(purge_step, _field(7, _field(1, 1)))  # session_log { status: START }

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by name."""
        for name, value in values.items():
            self._summary(step, name, _field(2, float(value)))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, 1 or 3]."""
        height, width, channels = image.shape
        png = io.BytesIO()
        Image.fromarray(image[..., 0] if channels == 1 else image).save(png, format="png")
        fields = _field(1, height) + _field(2, width) + _field(3, channels) + _field(4, png.getvalue())
        self._summary(step, name, _field(4, fields))

    def _summary(self, step: int, name: str, value: bytes) -> None:
        self._write(step, _field(5, _field(1, _field(1, name.encode()) + value)))

    def _write(self, step: int, what: bytes) -> None:
        event = _field(1, np.float64(time.time())) + _field(2, step) + what
        self._file.write(_checked(struct.pack("<Q", len(event))) + _checked(event))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
