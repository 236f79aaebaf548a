"""Reads what wandb writes: records of protobuf in the log format of LevelDB."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record, RunRecord

BLOCK_BYTES = 32768  # LevelDB splits messages where such a block of the file ends


def records(file: Path) -> Iterator[Record]:
    data, start, message = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while start + 7 <= len(data):
        left = BLOCK_BYTES - start % BLOCK_BYTES
        if left < 7:
            start += left
            continue
        _, size, kind = struct.unpack("<IHB", data[start : start + 7])
        message += data[start + 7 : start + 7 + size]
        start += 7 + size
        if kind in (1, 4):  # a whole message, or the last part of one
            yield Record.FromString(message)
            message = b""


def logged(segment: Path) -> Iterator[tuple[str, int, float | str]]:
    """(name, step, value) of everything that was logged; the value of a picture is its file."""
    for record in contents(segment):
        rows: dict[str, dict[str, object]] = {}
        for item in record.history.item:
            rows.setdefault(item.nested_key[0], {})["/".join(item.nested_key[1:])] = json.loads(item.value_json)
        for name, value in rows.items():
            if name != "step" and not name.startswith("_"):  # those are wandb's own
                yield name, rows["step"][""], value.get("path", value.get(""))


def contents(segment: Path) -> list[Record]:
    (file,) = segment.glob("*.wandb")
    return list(records(file))


def run_of(segment: Path) -> RunRecord:
    (found,) = [record.run for record in contents(segment) if record.HasField("run")]
    return found
