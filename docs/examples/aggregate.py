#!/usr/bin/env python3
"""A program for `millpond-edge process --exec /full/path/of/aggregate.py`: the mean of every number in the
round's files, one a line.

What a file holds that is no number is passed over and counted.
"""
import json
import os
import pathlib
import sys

files = sorted(path for path in pathlib.Path(os.environ["MILLPOND_INPUT"]).glob("*/*"))
params = json.loads(os.environ["MILLPOND_PARAMS"]) or {}
numbers, others = [], 0
for done, path in enumerate(files, start=1):
    for line in path.read_text(errors="replace").splitlines():
        try:
            numbers.append(float(line))
        except ValueError:
            others += 1
    print(f"progress {done / len(files)}", flush=True)

print(f"{len(numbers)} numbers and {others} other lines in {len(files)} files", file=sys.stderr)
if not numbers:
    sys.exit("no number in the whole round")
result = {
    "round": int(os.environ["MILLPOND_ROUND"]),
    "mean": round(sum(numbers) / len(numbers), params.get("digits", 3)),
    "count": len(numbers),
}
pathlib.Path(os.environ["MILLPOND_OUTPUT"]).write_text(json.dumps(result) + "\n")
