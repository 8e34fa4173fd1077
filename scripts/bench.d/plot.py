"""Draws the ratios of scripts/bench's JSON file as bars in an SVG file, with a line where each goal is.

    plot.py RESULT.json BENCHMARKS.svg

A shorter bar is better: each is what pushgate takes, as a part of what the other takes for the same work. What is not
in the file is left out.
"""

import json
import sys
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, HEAD = 860, 250, 150, 26, 34
PUSH_GOALS = {"small": 1 / 3, "medium": 1 / 2, "large": 1 / 2}
#: of what the gateway takes for a request, by the least rate or the longest time against nginx
READ_GOALS = {"narinfos": 2.0, "small NARs": 1.3, "large NARs": 1.3}


def groups(report):
    """Title, and for each bar its name, its ratio, and the goal or None."""
    if report.get("sets"):
        yield "push, wall time: nix copy = 1", [
            (s["set"], s["ratios"]["wall"], PUSH_GOALS.get(s["set"])) for s in report["sets"]]
    if report.get("intake"):
        yield "intake, CPU time: zstd -dc | sha256sum = 1", [
            (i["what"], i["ratio"], i["goal"]) for i in report["intake"]]
    if report.get("uploads"):
        uploads = report["uploads"]
        goals = uploads["goals_mib"]
        yield f"peak memory, {uploads['uploads']} uploads of 500 MB at once: what is allowed = 1", [
            (f"gateway, {uploads['gateway_peak_mib']:.0f} of {goals['gateway']} MiB",
             uploads["gateway_peak_mib"] / goals["gateway"], 1.0),
            (f"client, {uploads['client_peak_mib']:.0f} of {goals['client']} MiB",
             uploads["client_peak_mib"] / goals["client"], 1.0)]
    reads = []
    for task in report.get("reads", {}).get("tasks", []):
        rate = task.get("ratio", task.get("ratios", {}).get("rate") if isinstance(task.get("ratios"), dict) else None)
        name = task.get("task", task.get("name"))
        if rate:
            reads.append((name, 1 / rate, READ_GOALS.get(name)))
    if reads:
        yield "reads, time for a request: nginx = 1", reads


def draw(report):
    parts, top = [], 10
    for title, bars in groups(report):
        parts.append(f'<text x="10" y="{top + 20}" class="title">{escape(title)}</text>')
        top += HEAD
        end = max([1.0] + [value for _, ratio, goal in bars for value in (ratio, goal or 0)]) * 1.05
        scale = (WIDTH - LEFT - RIGHT) / end
        bottom = top + ROW * len(bars)
        for name, ratio, goal in bars:
            good = goal is None or ratio <= goal
            parts.append(f'<text x="{LEFT - 8}" y="{top + 17}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{top + 4}" width="{ratio * scale:.1f}" height="{ROW - 8}" '
                         f'class="{"good" if good else "open"}"/>')
            if goal is not None:
                at = LEFT + goal * scale
                parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top + 1}" y2="{top + ROW - 1}" class="goal"/>')
            wanted = f" (goal {goal:.2f})" if goal is not None else ""
            parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{top + 17}">{ratio:.2f}{wanted}</text>')
            top += ROW
        one = LEFT + scale
        parts.append(f'<line x1="{one:.1f}" x2="{one:.1f}" y1="{bottom - ROW * len(bars)}" y2="{bottom}" class="one"/>')
        top += 14
    style = ("text{font:13px sans-serif;fill:#222}.title{font-weight:bold}.good{fill:#4a7fb5}.open{fill:#c98b3d}"
             ".goal{stroke:#111;stroke-width:2}.one{stroke:#999;stroke-dasharray:3 3}")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}">'
            f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>' + "".join(parts) + "</svg>\n")


def main():
    with open(sys.argv[1]) as file:
        report = json.load(file)
    with open(sys.argv[2], "w") as file:
        file.write(draw(report))


main()
