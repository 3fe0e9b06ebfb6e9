#!/usr/bin/env python3
"""Draws TFLOPS over sequence lengths, ours beside peers, as an SVG.

    python3 Benchmarks/prefill_picture.py Documentation/prefill-h200.json > Documentation/prefill-h200.svg

The file has a title and `figures`: lists of name, D, whether it is causal, N, TFLOPS, of up to four names, each D plain and
causal. Needs nothing but Python.
"""
import argparse
import json
import sys

COLOURS = ["#c8102e", "#4a6785", "#8a9a5b", "#b58900"]
WIDTH, HEIGHT, LEFT, TOP, GAP = 250, 150, 48, 54, 34


def panel(figures, names, limit, x, y, title):
    """One diagram: a line for each name over the lengths, which are spaced as their logarithms."""
    lengths = sorted({n for _, n, _ in figures})

    def place(n, value):
        return x + WIDTH * lengths.index(n) / max(len(lengths) - 1, 1), y + HEIGHT * (1 - value / limit)

    yield f'<text x="{x}" y="{y - 8}" font-weight="bold">{title}</text>'
    for value in range(0, limit + 1, 200):
        level = place(lengths[0], value)[1]
        yield f'<path d="M{x} {level:.1f}h{WIDTH}" stroke="#ddd"/>'
        yield f'<text x="{x - 6}" y="{level + 4:.1f}" text-anchor="end" fill="#555">{value}</text>'
    for n in lengths:
        label = f"{n // 1024}k" if n >= 1024 else n
        yield f'<text x="{place(n, 0)[0]:.1f}" y="{y + HEIGHT + 15}" text-anchor="middle" fill="#555">{label}</text>'
    # The first name's line lies on top.
    for name, colour in reversed(list(zip(names, COLOURS))):
        points = [place(n, value) for other, n, value in sorted(figures, key=lambda f: f[1]) if other == name]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{2.5 if name == names[0] else 1.5}"/>'
        yield from (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in points)


def main():
    parser = argparse.ArgumentParser(description="Draws TFLOPS over sequence lengths as an SVG.")
    parser.add_argument("file", help="JSON with a title and figures")
    content = json.load(open(parser.parse_args().file))
    figures = content["figures"]
    names = list(dict.fromkeys(name for name, *_ in figures))
    if len(names) > len(COLOURS):
        sys.exit(f"There are figures of {len(names)} names ({', '.join(names)}); the picture has lines for {len(COLOURS)}.")
    if missing := [f"D {d}, {'causal' if c else 'plain'}" for d in {f[1] for f in figures} for c in (False, True)
                   if not any(f[1] == d and bool(f[2]) == c for f in figures)]:
        sys.exit(f"There are no figures of {', '.join(missing)}.")
    limit = -(-int(max(value for *_, value in figures)) // 200) * 200
    dimensions = sorted({d for _, d, *_ in figures})
    width = LEFT + len(dimensions) * (WIDTH + GAP + 14)
    height = TOP + 2 * (HEIGHT + GAP + 20)
    parts = [f'<text x="{LEFT}" y="16">{content["title"]}</text>']
    for number, (name, colour) in enumerate(zip(names, COLOURS)):
        at = width - 330 + 110 * number
        parts.append(f'<path d="M{at} 28h18" stroke="{colour}" stroke-width="2.5"/><text x="{at + 23}" y="32">{name}</text>')
    for row, causal in enumerate([False, True]):
        for column, d in enumerate(dimensions):
            own = [(name, n, value) for name, other, c, n, value in figures if other == d and bool(c) == causal]
            parts += panel(
                own, names, limit, LEFT + column * (WIDTH + GAP + 14), TOP + row * (HEIGHT + GAP + 20),
                f"D {d}" + (", causal" if causal else ""))
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="white"/>')
    print("\n".join(parts))
    print("</svg>")


if __name__ == "__main__":
    main()
