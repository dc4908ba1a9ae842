#!/usr/bin/env python3
"""Bundle v1 in Python, standard library only.

    bundle.py encode DESCRIPTION.json > message     bundle.py decode < message

The description is what `encode` takes: an object with `entries`, and the optional `clock_offset_ms` and
`complete_through_ms`; `sha256` is hex and `data` base64 there.
"""
import base64
import json
import struct
import sys


def uint(n):
    """An unsigned integer: one byte below 251, else a marker and two, four or eight bytes, little endian."""
    if n < 251:
        return bytes([n])
    for marker, form, bits in ((251, "<H", 16), (252, "<I", 32), (253, "<Q", 64)):
        if n < 1 << bits:
            return bytes([marker]) + struct.pack(form, n)
    raise ValueError("more than 64 bits")


def sint(n):
    return uint(2 * n if n >= 0 else -2 * n - 1)


def blob(data):
    return uint(len(data)) + data


def text(string):
    return blob(string.encode())


def option(write, value):
    return b"\0" if value is None else b"\1" + write(value)


def entry(e):
    return b"".join((
        text(e["upload"]), sint(e["event_time_ms"]), text(e.get("name", "")), option(text, e.get("content_type")),
        option(text, e.get("label")), option(bytes, e.get("sha256")), option(text, e.get("meta")), blob(e["data"])))


def encode(entries, clock_offset_ms=None, complete_through_ms=None):
    """The payload of `mp/{pool}/c/{member}/bundle/{id}`. `sha256` is 32 bytes, `data` is bytes."""
    return b"".join((b"MPB1", option(sint, clock_offset_ms), option(sint, complete_through_ms),
                     uint(len(entries)), *map(entry, entries)))


class Reader:
    def __init__(self, message):
        self.rest = message

    def take(self, n):
        if len(self.rest) < n:
            raise ValueError("the bundle ends too early")
        taken, self.rest = self.rest[:n], self.rest[n:]
        return taken

    def uint(self):
        first = self.take(1)[0]
        if first < 251:
            return first
        size = {251: 2, 252: 4, 253: 8}.get(first)
        if size is None:
            raise ValueError("no integer of at most 64 bits")
        return int.from_bytes(self.take(size), "little")

    def sint(self):
        n = self.uint()
        return n >> 1 if n % 2 == 0 else -(n >> 1) - 1

    def blob(self):
        return self.take(self.uint())

    def text(self):
        return self.blob().decode()

    def option(self, read):
        return {0: lambda: None, 1: read}[self.take(1)[0]]()


def decode(message):
    r = Reader(message)
    if r.take(4) != b"MPB1":
        raise ValueError("not a bundle")
    bundle = {"clock_offset_ms": r.option(r.sint), "complete_through_ms": r.option(r.sint), "entries": []}
    for _ in range(r.uint()):
        bundle["entries"].append({
            "upload": r.text(), "event_time_ms": r.sint(), "name": r.text(), "content_type": r.option(r.text),
            "label": r.option(r.text), "sha256": r.option(lambda: r.take(32)), "meta": r.option(r.text),
            "data": r.blob()})
    if r.rest:
        raise ValueError("bytes after the bundle")
    return bundle


def main(command, *files):
    if command == "encode":
        with open(files[0], encoding="utf-8") as file:
            bundle = json.load(file)
        for e in bundle["entries"]:
            e["sha256"] = bytes.fromhex(e["sha256"]) if e.get("sha256") else None
            e["data"] = base64.b64decode(e["data"])
        sys.stdout.buffer.write(encode(**bundle))
    elif command == "decode":
        bundle = decode(sys.stdin.buffer.read())
        for e in bundle["entries"]:
            e["sha256"] = e["sha256"] and e["sha256"].hex()
            e["data"] = base64.b64encode(e["data"]).decode()
        json.dump(bundle, sys.stdout, indent=2)
        print()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["help"]))
