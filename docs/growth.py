#!/usr/bin/env python3
"""Draws docs/growth.svg from docs/growth.csv, which `bench -- growth` prints. Needs nothing but Python."""

import csv
import math
import pathlib
from html import escape

HERE = pathlib.Path(__file__).parent
WIDTH, HEIGHT, MARGIN, COLUMNS = 300, 190, 46, 3


def panels():
    found = {}
    with open(HERE / "growth.csv", newline="") as rows:
        for row in csv.DictReader(rows):
            points = found.setdefault((row["what"], row["figure"]), [])
            points.append((float(row["count"]), float(row["value"])))
    return found


def number(value):
    if value >= 1_000_000:
        return f"{value / 1_000_000:g} M"
    if value >= 1_000:
        return f"{value / 1_000:.3g} k"
    return f"{value:.3g}"


def panel(x, y, what, figure, points):
    # Both axes are logarithmic: what grows in proportion is a line at 45 degrees if the decades are as long.
    left, right = math.log10(points[0][0]), math.log10(points[-1][0])
    values = [math.log10(max(value, 0.001)) for _, value in points]
    low, high = math.floor(min(values)), math.ceil(max(values) + 0.01)
    inside_x, inside_y = WIDTH - 1.5 * MARGIN, HEIGHT - 2 * MARGIN

    def place(count, value):
        across = (math.log10(count) - left) / (right - left or 1)
        up = (math.log10(max(value, 0.001)) - low) / (high - low)
        return x + MARGIN + across * inside_x, y + HEIGHT - MARGIN - up * inside_y

    out = [f'<text x="{x + MARGIN}" y="{y + 18}" class="title">{escape(figure)}</text>']
    out.append(f'<text x="{x + MARGIN + inside_x / 2}" y="{y + HEIGHT - 10}" class="axis">{escape(what)}</text>')
    for decade in range(low, high + 1):
        at = place(points[0][0], 10.0**decade)[1]
        out.append(f'<line x1="{x + MARGIN}" x2="{x + MARGIN + inside_x}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        out.append(f'<text x="{x + MARGIN - 4}" y="{at + 3:.1f}" class="tick">{number(10.0**decade)}</text>')
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*point) for point in points))
    out.append(f'<polyline points="{line}"/>')
    for count, value in points:
        px, py = place(count, value)
        out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>')
        out.append(f'<text x="{px:.1f}" y="{py - 6:.1f}" class="value">{number(value)}</text>')
        out.append(f'<text x="{px:.1f}" y="{y + HEIGHT - MARGIN + 13}" class="axis">{number(count)}</text>')
    return out


def main():
    found = panels()
    rows = math.ceil(len(found) / COLUMNS)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * WIDTH} {rows * HEIGHT}" font-family="sans-serif">',
        "<style>text{font-size:9px;fill:#333}.title{font-size:11px;font-weight:bold}.tick{text-anchor:end}"
        ".axis,.value{text-anchor:middle}.value{font-size:8px}.grid{stroke:#ddd}"
        "polyline{fill:none;stroke:#1668a8;stroke-width:1.5}circle{fill:#1668a8}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for n, ((what, figure), points) in enumerate(found.items()):
        out += panel(n % COLUMNS * WIDTH, n // COLUMNS * HEIGHT, what, figure, points)
    (HERE / "growth.svg").write_text("\n".join(out + ["</svg>", ""]))


if __name__ == "__main__":
    main()
