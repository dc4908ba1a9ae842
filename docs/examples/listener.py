#!/usr/bin/env python3
"""Keeps the newest result of a pool in a directory, and says so to the server.

    listener.py --user demo/listener --token mpd_… --dir results [--once]
"""
import json
import os
import random
import sys
import time
import urllib.error

import millpond


def take(member, pointer, directory):
    """Fetches the result that the pointer names, and puts it in place whole or not at all."""
    time.sleep(random.uniform(0, pointer["spread_s"]))
    try:
        data = millpond.fetch(pointer["url"], pointer["size"], pointer["sha256"])
    except urllib.error.HTTPError as error:
        if error.code != 403:
            raise
        pointer = member.ask("latest")["result"]  # the URL has expired
        data = millpond.fetch(pointer["url"], pointer["size"], pointer["sha256"])
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, pointer["name"])
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.replace(path + ".new", path)
    delivery = {"state": "applied", "sha256": pointer["sha256"]}
    member.publish(f"delivery/{pointer['version']}", json.dumps(delivery))
    print(f"version {pointer['version']}: {path}", flush=True)


def main():
    parser = millpond.arguments("Keeps the newest result of a pool.")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--once", action="store_true", help="end after the first result")
    options = parser.parse_args()
    member = millpond.connect(options)
    topic = f"mp/{member.pool}/result"
    member.subscribe(topic)
    version = 0
    while not (options.once and version):
        name, payload = member.messages.get()
        # An empty payload says that there is no result.
        if name == topic and payload:
            pointer = json.loads(payload)
            if pointer["version"] > version:
                take(member, pointer, options.dir)
                version = pointer["version"]
    member.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
