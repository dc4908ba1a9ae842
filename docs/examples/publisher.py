#!/usr/bin/env python3
"""Uploads files; each belongs to the time of its last change. Exits with 0 if all of them are stored.

    publisher.py --user demo/edge-1 --token mpd_… FILE…
"""
import hashlib
import json
import os
import sys

import millpond


def main():
    parser = millpond.arguments("Uploads files.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    options = parser.parse_args()
    member = millpond.connect(options)

    waiting = {}
    for path in options.files:
        with open(path, "rb") as file:
            data = file.read()
        sha256 = hashlib.sha256(data).hexdigest()
        # The id is a function of the content: sending the same file again, even tomorrow, is the same upload.
        upload = f"f-{sha256[:32]}"
        waiting[upload] = path
        member.publish(f"up/{upload}", data, [
            ("name", os.path.basename(path)),
            ("event-time", str(int(os.stat(path).st_mtime * 1000))),
            ("sha256", sha256),
        ], "application/octet-stream")

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
