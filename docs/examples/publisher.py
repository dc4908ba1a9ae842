#!/usr/bin/env python3
"""Uploads files; each belongs to the time of its last change. Exits with 0 if all of them are stored.

    publisher.py --user demo/edge-1 --token mpd_… FILE…
"""
import hashlib
import json
import os
import sys

import millpond


def publish(member, file, upload, sha256, part_size):
    """A receipt says what becomes of it."""
    about = os.stat(file.name)
    name, event_time = os.path.basename(file.name), int(about.st_mtime * 1000)
    if about.st_size <= millpond.PUBLISH_MAX:
        properties = [("name", name), ("event-time", str(event_time)), ("sha256", sha256)]
        member.publish(f"up/{upload}", file.read(), properties, "application/octet-stream")
        return
    more = {"part_size": part_size} if part_size else {}
    millpond.send(member, file, about.st_size, sha256, upload=upload, name=name, event_time=event_time, **more)
    member.ask("commit", upload=upload)


def main():
    parser = millpond.arguments("Uploads files.")
    parser.add_argument("--part-size", type=int, help="bytes: a longer file goes in parts of that many, from 5 MiB on")
    parser.add_argument("files", nargs="+", metavar="FILE")
    options = parser.parse_args()
    member = millpond.connect(options)

    waiting = {}
    for path in options.files:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            # The id is a function of the content: sending the same file again, even tomorrow, is the same upload.
            upload = f"f-{sha256[:32]}"
            waiting[upload] = path
            file.seek(0)
            publish(member, file, upload, sha256, options.part_size)

    stored = True
    while waiting:
        topic, payload = member.messages.get(timeout=millpond.PATIENCE)
        receipt = json.loads(payload)
        if topic.endswith("/receipt") and receipt["upload"] in waiting:
            path = waiting.pop(receipt["upload"])
            print(f"{path}: {receipt['outcome']} in batch {receipt.get('batch', '-')}")
            stored = stored and receipt["outcome"] == "stored"
    member.close()
    return 0 if stored else 1


if __name__ == "__main__":
    sys.exit(main())
