"""TensorBoard event files, read without TensorBoard."""

from __future__ import annotations

import struct

from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """The events of all files, in order: length, checksum, bytes, checksum."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found
