#!/usr/bin/env python3
"""Draws the pictures of Documentation/Hour.md: what the emulator counts, and what rules say.

    python3 Benchmarks/hour_pictures.py .build/release/flash-attention Documentation/hour

Writes ladder.svg, tiles.svg, roofline.svg and call.svg. Needs nothing but Python and the tool, no GPU.
"""
import argparse
import json
import pathlib
import subprocess

RED, BLUE, GREY = "#c8102e", "#4a6785", "#ddd"
HERE = pathlib.Path(__file__).resolve().parent.parent / "Documentation"


def text(x, y, words, anchor="start", weight="normal", colour="#222"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">{words}</text>'


def box(x, y, width, height, colour, stroke="none"):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" stroke="{stroke}"/>'


def svg(width, height, parts):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        box(0, 0, width, height, "white"), *parts, "</svg>", ""])


def counted(tool, *options):
    """What the emulator counts of each rung with two stages: 256 queries and keys, one head, D 64."""
    command = [tool, "bench", "variants", "--emulate", "--dim", "64", "--queries", "256", "--query-heads", "1", "--tiling",
               "warps=4,row-tiles=1,keys=64", "--json", "-", *options]
    lines = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {line["rung"]: line for line in lines if line["stages"] == 2 and line.get("counters")}


def ladder(tool):
    """Four counts of each rung, as bars beside the largest."""
    rungs = counted(tool)
    columns = [
        ("K and V from memory, KB", lambda r: sum(r["counters"]["bytes"][name] for name in "kv") / 1024),
        ("passes of shared memory", lambda r: r["counters"]["sharedPasses"]),
        ("waits of warps at barriers", lambda r: r["counters"]["barriers"]),
        ("shared memory, KB", lambda r: r["sharedBytes"] / 1024),
    ]
    left, width, gap, step = 140, 150, 22, 26
    for column, (title, value) in enumerate(columns):
        x, most = left + column * (width + gap), max(map(value, rungs.values()))
        yield text(x, 18, title, weight="bold")
        for row, rung in enumerate(rungs.values()):
            y, number = 28 + row * step, value(rung)
            yield box(x, y, (width - 48) * number / most, step - 8, RED if rung["rung"] == "split-q" else BLUE)
            yield text(x + (width - 48) * number / most + 5, y + 13, f"{number:,.0f}".replace(",", " "))
    for row, name in enumerate(rungs):
        yield text(left - 8, 41 + row * step, name, "end")


MASKS = {
    "causal": lambda i, j: j <= i,
    "window of 63 keys before": lambda i, j: i - 63 <= j <= i,
    "chunks of 128": lambda i, j: j <= i and i // 128 == j // 128,
    "documents from 0, 90 and 200": lambda i, j: j <= i and sum(i >= s for s in (90, 200)) == sum(j >= s for s in (90, 200)),
}


def tiles(tool):
    """Tiles of 64 x 64 of 256 queries and keys: skipped, masked or whole, by the definition of each mask."""
    options = {"causal": ["--causal"], "window of 63 keys before": ["--window", "63,0"]}
    plain = counted(tool)["split-q"]["counters"]["matrixInstructions"]
    n, size, scale = 256, 64, 0.55
    for number, (name, sees) in enumerate(MASKS.items()):
        x, y, kept = 10 + number * 180, 30, 0
        yield text(x, 18, name, weight="bold")
        for row in range(0, n, size):
            for column in range(0, n, size):
                seen = [sees(i, j) for i in range(row, row + size) for j in range(column, column + size)]
                colour = GREY if not any(seen) else BLUE if all(seen) else RED
                kept += any(seen)
                yield box(x + column * scale, y + row * scale, size * scale - 1, size * scale - 1, colour)
        yield text(x, y + n * scale + 16, f"{kept} of {(n // size) ** 2} tiles")
        if name in options:
            own = counted(tool, *options[name])["split-q"]["counters"]["matrixInstructions"]
            assert own * (n // size) ** 2 == plain * kept, (name, own, plain, kept)
            yield text(x, y + n * scale + 31, f"counted: {own} of {plain} mma")
    yield from (part for at, (colour, words) in enumerate([
        (GREY, "nobody sees it: not copied, not multiplied"), (RED, "masked element by element"), (BLUE, "whole, no mask")])
        for part in (box(10 + at * 260, 222, 12, 12, colour), text(27 + at * 260, 232, words)))


# Of the table in README.md: sequences, keys, query heads, key/value heads, queries, microseconds.
DECODING = [(32, 8192, 32, 8, 1, 242.3), (1, 32768, 16, 1, 1, 14.7), (32, 8192, 16, 1, 8, 47.0)]


def roofline():
    """What an H200 can do at most, and what these kernels did, over multiply-adds for each byte that must move."""
    # TB/s of reading, and TFLOPS of wgmma at the power limit, both by probes (Documentation/Hopper.md: 850 to 910).
    bandwidth, rate = 4.68, 880.0
    points = []
    for name, d, causal, n, value in json.load(open(HERE / "prefill-h200.json"))["figures"]:
        if name == "ours" and d == 128 and not causal and n in (512, 2048, 8192):
            points.append((4 * n * n * d / (4 * n * d * 2), value, f"prefill, N {n}"))
    for batch, keys, heads, shared, queries, microseconds in DECODING:
        flops = 4 * batch * heads * queries * keys * 128
        moved = 2 * 2 * batch * (shared * keys + heads * queries) * 128
        name = f"{batch} x {keys} keys, {heads}/{shared} heads, {queries} {'query' if queries == 1 else 'queries'}"
        points.append((flops / moved, flops / microseconds / 1e6, name))
    x0, y0, width, height = 56, 16, 560, 210
    from math import log10
    def place(intensity, value):
        return x0 + width * log10(intensity) / 4, y0 + height * (1 - (log10(value) - 0.4) / 2.8)
    for value in (10, 100, 1000):
        yield f'<path d="M{x0} {place(1, value)[1]:.1f}h{width}" stroke="{GREY}"/>'
        yield text(x0 - 6, place(1, value)[1] + 4, f"{value}", "end", colour="#555")
    for intensity in (1, 10, 100, 1000, 10000):
        yield text(place(intensity, 10)[0], y0 + height + 16, f"{intensity}", "middle", colour="#555")
    knee = rate / bandwidth
    corner = [place(1, bandwidth), place(knee, rate), place(10000, rate)]
    yield '<polyline points="' + " ".join(f"{a:.1f},{b:.1f}" for a, b in corner) + f'" fill="none" stroke="{BLUE}" stroke-width="2"/>'
    for intensity, value, label in points:
        x, y = place(intensity, value)
        below = label.startswith("32") and label.endswith("query")
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{RED}"/>' + text(x + 8, y + (28 if below else 16), label)
    yield text(x0, y0 + height + 34, "flops for each byte of Q, K, V and O that must come from memory or go there", colour="#555")
    yield text(x0 + 6, y0 + 8, "TFLOPS", colour="#555")


CALL = [
    ("your call", "attention(q, k, v)", "tensors, a mask"),
    ("AttentionProblem", "what is asked, checked", "once for a shape"),
    ("AttentionPlan", "device, family, tiling", "ranked in seconds"),
    ("Kernel (PTX)", "Swift emits the text", "the driver compiles it"),
    ("launch", "pointers, strides, lengths", "no text, no compiling"),
    ("GPU", "tiles flow, online softmax", "O and the log-sum-exp"),
]


def call():
    """The life of one call, left to right; what is kept is drawn beneath."""
    width = 148
    for number, (name, what, how) in enumerate(CALL):
        x = 8 + number * (width + 16)
        kept = number in (2, 3)
        yield box(x, 24, width, 62, "#f4f4f4" if not kept else "#e8eef4", BLUE if kept else "#999")
        yield text(x + width / 2, 42, name, "middle", "bold")
        yield text(x + width / 2, 60, what, "middle") + text(x + width / 2, 76, how, "middle", colour="#555")
        if number:
            yield f'<path d="M{x - 15} 55h11m-4 -4l4 4l-4 4" stroke="#222" fill="none"/>'
    x = 8 + 2 * (width + 16)
    yield f'<path d="M{x} 96v6h{2 * width + 16}v-6" stroke="{BLUE}" fill="none"/>'
    yield text(x + width + 8, 118, "kept: the next call of this shape begins behind them", "middle", colour=BLUE)


def main():
    parser = argparse.ArgumentParser(description="Draws the pictures of Documentation/Hour.md.")
    parser.add_argument("tool", help="the tool, built for release")
    parser.add_argument("folder", type=pathlib.Path, help="where the pictures go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, width, height, parts in [
            ("ladder", 830, 192, ladder(options.tool)), ("tiles", 740, 244, tiles(options.tool)),
            ("roofline", 720, 262, roofline()), ("call", 992, 126, call())]:
        (options.folder / f"{name}.svg").write_text(svg(width, height, parts))


if __name__ == "__main__":
    main()
