#!/usr/bin/env python3
"""Draws microseconds of a decode call over the size of its cache, ours beside peers and the floor, as an SVG.

    python3 Benchmarks/decode_picture.py Documentation/decode-h200.json > Documentation/decode-h200.svg

The file has a title and `figures`: lists of name, bytes of K and V, microseconds; the name `floor` is drawn as a line, of others each
figure is a dot. Both axes are logarithmic. Needs nothing but Python.
"""
import argparse
import json
import math
import sys

COLOURS = ["#c8102e", "#4a6785", "#8a9a5b", "#b58900"]
WIDTH, HEIGHT, LEFT, TOP = 720, 380, 58, 54


def main():
    parser = argparse.ArgumentParser(description="Draws microseconds over bytes as an SVG.")
    parser.add_argument("file", help="JSON with a title and figures")
    content = json.load(open(parser.parse_args().file))
    figures = content["figures"]
    names = list(dict.fromkeys(name for name, *_ in figures if name != "floor"))
    if not 1 <= len(names) <= len(COLOURS):
        sys.exit(f"There are figures of {len(names)} names ({', '.join(names)}); the picture has dots for 1 to {len(COLOURS)}.")
    sizes, times = [f[1] for f in figures], [f[2] for f in figures]

    def scale(values, length):
        low, high = math.log10(min(values)) - 0.08, math.log10(max(values)) + 0.08
        return lambda value: length * (math.log10(value) - low) / (high - low)

    along, up = scale(sizes, WIDTH), scale(times, HEIGHT)

    def place(size, time):
        return LEFT + along(size), TOP + HEIGHT - up(time)

    parts = [f'<text x="{LEFT}" y="16">{content["title"]}</text>']
    for time in (5, 10, 20, 50, 100, 200, 500, 1000, 2000):
        if min(times) <= time <= max(times):
            y = place(min(sizes), time)[1]
            parts.append(f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{time}</text>')
    for power in range(20, 40):
        if min(sizes) <= 2**power <= max(sizes):
            label = f"{2 ** (power - 20)} MB" if power < 30 else f"{2 ** (power - 30)} GB"
            x = place(2**power, min(times))[0]
            parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle" fill="#555">{label}</text>')
    line = " ".join("{:.1f},{:.1f}".format(*place(*f[1:])) for f in sorted(figures, key=lambda f: f[1]) if f[0] == "floor")
    parts.append(f'<polyline points="{line}" fill="none" stroke="#999" stroke-width="1.5" stroke-dasharray="5 3"/>')
    parts.append(f'<path d="M{LEFT} 28h18" stroke="#999" stroke-width="1.5" stroke-dasharray="5 3"/>')
    parts.append(f'<text x="{LEFT + 23}" y="32">floor</text>')
    # The first name's dots lie on top.
    for number, (name, colour) in reversed(list(enumerate(zip(names, COLOURS)))):
        at = LEFT + 90 + 130 * number
        parts.append(f'<circle cx="{at}" cy="28" r="4" fill="{colour}"/><text x="{at + 9}" y="32">{name}</text>')
        for own, size, time in figures:
            if own == name:
                x, y = place(size, time)
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3.2 if number == 0 else 2.6}" fill="{colour}" fill-opacity="0.8"/>')
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {TOP + HEIGHT + 30}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="white"/>')
    print("\n".join(parts))
    print("</svg>")


if __name__ == "__main__":
    main()
