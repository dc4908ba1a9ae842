#!/usr/bin/env python3
"""The external server: takes a round, checks every file, and returns one file, here all of them one after the other.

    processor.py --user demo/mill --token mpd_… --trigger      seals the oldest open batch and takes it
    processor.py --user demo/mill --token mpd_…                takes the oldest round on offer
"""
import hashlib
import io
import json
import sys
import tarfile
import urllib.request

import millpond


def lease_of(member, trigger):
    if trigger:
        lease = member.ask("trigger", which="oldest", take=True, wait_s=30)["lease"]
    else:
        lease = member.ask("claim", wait_s=30)
    while lease and lease["round"] and not lease["ready"]:
        lease = member.ask("beat", round=lease["round"], attempt=lease["attempt"], wait_s=30)
    return lease if lease and lease["round"] else None


def manifest_of(lease):
    """Header, and the uploads by (member, upload)."""
    with urllib.request.urlopen(lease["manifest_url"], timeout=millpond.PATIENCE) as response:
        text = response.read()
    if hashlib.sha256(text).hexdigest() != lease["manifest_sha256"]:
        raise ValueError("the manifest is not what the lease says")
    header, *lines = [json.loads(line) for line in text.splitlines()]
    return header, {(line["member"], line["upload"]): line for line in lines}


def files_of(member, lease):
    """Every file of the lease as ((member, upload), bytes), page after page."""
    files, cursor = lease["files"], lease.get("cursor")
    while True:
        for file in files:
            data = millpond.fetch(file["url"], file["size"], file["sha256"])
            if file["kind"] == "large":
                yield (file["member"], file["upload"]), data
            else:
                with tarfile.open(fileobj=io.BytesIO(data)) as pack:
                    for entry in pack:
                        yield tuple(entry.name.split("/")), pack.extractfile(entry).read()
        if not cursor:
            return
        page = member.ask("files", round=lease["round"], attempt=lease["attempt"], cursor=cursor)
        files, cursor = page["files"], page.get("cursor")


def main():
    parser = millpond.arguments("Works on one round.")
    parser.add_argument("--trigger", action="store_true", help="seal the oldest open batch and take it")
    options = parser.parse_args()
    member = millpond.connect(options)
    lease = lease_of(member, options.trigger)
    if lease is None:
        print("nothing to do")
        return 0
    this = {"round": lease["round"], "attempt": lease["attempt"]}
    try:
        header, manifest = manifest_of(lease)
        result = b""
        for key, data in sorted(files_of(member, lease)):
            if hashlib.sha256(data).hexdigest() != manifest.pop(key)["sha256"]:
                raise ValueError(f"{'/'.join(key)} is not what the manifest lists")
            result += data
        missing = [key for key, line in manifest.items() if not line.get("superseded")]
        if missing:
            raise ValueError(f"{len(missing)} files are missing")
        if len(result) <= millpond.PUBLISH_MAX:
            member.publish(f"result/{lease['round']}/{lease['attempt']}", result, [("name", "joined.bin")])
        else:
            sha256 = hashlib.sha256(result).hexdigest()
            millpond.send(member, io.BytesIO(result), len(result), sha256, name="joined.bin", **this)
        member.ask("done", **this, log=f"joined {header['count']} files\n", wait_s=30)
    except Exception as error:
        # Without this the round would be offered again only when the lease runs out.
        member.ask("fail", **this, error=str(error), retryable=True)
        raise
    print(f"round {lease['round']}: {header['count']} files, {len(result)} bytes returned")
    member.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
