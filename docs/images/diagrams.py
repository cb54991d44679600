"""Draw flow.svg, chunk.svg and fcn8s.svg in docs/images: python docs/images/diagrams.py.

Colours follow the reader: the system's scheme where the file is shown as a picture, the site's
where it stands in a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
WIDTH = 480

LIGHT = "--ink:#1f2933;--soft:#52606d;--line:#7b8794;--card:#ffffff;--tint:#e0f2f1;--edge:#00796b"
DARK = "--ink:#f0f4f8;--soft:#b3bfcc;--line:#8796a5;--card:#2a313c;--tint:#1d4441;--edge:#4db6ac"
STYLE = f"""\
.diagram{{{LIGHT}}}
@media (prefers-color-scheme:dark){{.diagram{{{DARK}}}}}
[data-md-color-scheme="default"] .diagram{{{LIGHT}}}
[data-md-color-scheme="slate"] .diagram{{{DARK}}}
.diagram text{{font-family:system-ui,sans-serif;fill:var(--ink);font-size:14px}}
.diagram .small{{font-size:12.5px;fill:var(--soft)}}
.diagram .name{{font-weight:600}}
.diagram .box{{fill:var(--card);stroke:var(--line)}}
.diagram .tint{{fill:var(--tint);stroke:var(--edge)}}
.diagram .group{{fill:none;stroke:var(--line);stroke-dasharray:5 4}}
.diagram .arrow{{fill:none;stroke:var(--line);stroke-width:1.6}}
.diagram .back{{stroke:var(--edge);stroke-dasharray:5 4}}
.diagram .head{{fill:var(--line)}}
.diagram .head.back{{fill:var(--edge);stroke:none}}"""


@dataclass
class Drawing:
    """A picture that grows downwards.

    Attributes:
        title: what it shows, for those who cannot see it.
        parts: SVG elements.
    """

    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """One line of words; y is the baseline."""
        where = f'x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}"'
        self.parts.append(f"<text {where}>{escape(words)}</text>")

    def box(self, where: tuple[float, float, float, float], lines: list[str], kind: str) -> None:
        """A box (x, y, width, height) with a name and smaller lines."""
        x, y, width, height = where
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"'
            f' class="{kind}"/>'
        )
        first = y + height / 2 + 5 - 9 * (len(lines) - 1)
        for number, words in enumerate(lines):
            style = "name" if number == 0 else "small"
            self.text(x + width / 2, first + 18 * number, words, style, "middle")

    def arrow(self, points: list[tuple[float, float]], kind: str = "") -> None:
        """A line through points, with a head at the last; the last piece is straight."""
        (ax, ay), (bx, by) = points[-2:]
        dx, dy = ((bx > ax) - (bx < ax), (by > ay) - (by < ay))
        path = " ".join(f"{x:g},{y:g}" for x, y in [*points[:-1], (bx - 6 * dx, by - 6 * dy)])
        self.parts.append(f'<polyline points="{path}" class="arrow {kind}"/>')
        left = (bx - 9 * dx + 4.5 * dy, by - 9 * dy + 4.5 * dx)
        right = (bx - 9 * dx - 4.5 * dy, by - 9 * dy - 4.5 * dx)
        head = " ".join(f"{x:g},{y:g}" for x, y in ((bx, by), left, right))
        self.parts.append(f'<polygon points="{head}" class="head {kind}"/>')

    def write(self, path: Path, height: int) -> None:
        """The file."""
        body = "\n".join(self.parts)
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            f' class="diagram" role="img" aria-label="{escape(self.title)}">\n'
            f"<style>{STYLE}</style>\n{body}\n</svg>\n"
        )


def flow(path: Path) -> None:
    """A run, from shards to commits."""
    d = Drawing(
        "Shards of INPUT are planned by the driver, read, segmented and written by workers, "
        "and committed by the driver to OUTPUT, whose commits the next run subtracts"
    )
    left, width, middle = 60, 350, 235
    d.box((left, 8, width, 54), ["INPUT", "tars, Parquet, folders; disk or bucket"], "tint")
    d.arrow([(middle, 62), (middle, 92)])
    d.text(middle + 12, 82, "one listing", "small")
    d.box((left, 92, width, 54), ["plan (driver)", "shards, less those whose commit holds"], "box")
    d.arrow([(middle, 146), (middle, 200)])
    d.text(middle + 12, 168, "pending shards in chunks", "small")
    d.parts.append('<rect x="42" y="184" width="386" height="252" rx="10" class="group"/>')
    d.text(56, 178, "threads, or tasks of Ray", "small")
    d.box((left, 200, width, 60), ["read", "the bytes of one chunk"], "box")
    d.arrow([(middle, 260), (middle, 284)])
    d.box(
        (left, 284, width, 66),
        ["segment", "decode, forward, argmax, count; in a process of", "its own, which may die"],
        "box",
    )
    d.arrow([(middle, 350), (middle, 372)])
    d.box((left, 372, width, 54), ["write", "masks, previews, at names known beforehand"], "box")
    d.arrow([(middle, 426), (middle, 476)])
    d.text(middle + 12, 462, "receipts: counts, SHA-256", "small")
    d.box(
        (left, 476, width, 54),
        ["commit (driver)", "of a whole shard: one create-only object"],
        "box",
    )
    d.arrow([(middle, 530), (middle, 556)])
    d.box((left, 556, width, 54), ["finish (driver)", "scores, drift, report, _SUCCESS"], "box")
    d.arrow([(middle, 610), (middle, 636)])
    d.box((left, 636, width, 54), ["OUTPUT", "masks/  _commits/  stats/  report.html"], "tint")
    # Bytes in and out, on the right; what a resume reads, on the left.
    d.arrow([(410, 399), (454, 399), (454, 663), (410, 663)])
    d.arrow([(410, 35), (454, 35), (454, 230), (410, 230)])
    d.arrow([(60, 663), (22, 663), (22, 119), (60, 119)], "back")
    d.parts.append(
        '<text transform="translate(15 500) rotate(-90)" class="small">'
        "the next run starts from the commits</text>"
    )
    d.write(path, 698)


def chunk(path: Path) -> None:
    """Draw the journey of a chunk: each module, and the type that it passes on."""
    d = Drawing(
        "resolve.py makes a RunSpec; plan.py makes shards; stages/read.py makes chunks; "
        "stages/segment.py, in a worker process, makes segmented chunks; stages/write.py makes "
        "receipts; committer.py makes commits; finish.py makes scores, report and marker"
    )
    left, width, middle = 60, 360, 240
    rows = [
        ("pipeline/resolve.py", "names and URLs become stores, weights, labels", "RunSpec"),
        ("pipeline/plan.py", "INPUT less the commits of OUTPUT", "Shard: the unit of commit"),
        ("stages/read.py", "fetches the bytes of one chunk", "Chunk: encoded samples"),
        (
            "stages/segment.py",
            "in a worker process: decode, predict, count",
            "SegmentedChunk: masks",
        ),
        ("stages/write.py", "writes masks and previews", "Receipt: counts, SHA-256"),
        ("pipeline/committer.py", "collects the receipts of a shard", "Commit: the shard is done"),
        ("pipeline/finish.py", "scores, table, record, report; the marker last", ""),
    ]
    step = 96
    outside = {1: 17, 4: 33}  # labels beside the frame of the executor
    for number, (name, what, product) in enumerate(rows):
        y = 30 + step * number
        d.box((left, y, width, 54), [name, what], "tint" if 2 <= number <= 4 else "box")
        if product:
            d.arrow([(middle, y + 54), (middle, y + step)])
            d.text(middle + 12, y + 54 + outside.get(number, 25), product, "small")
    # The executor runs the three stages; the driver does everything else.
    d.text(left, 20, "driver", "small")
    d.parts.append(
        f'<rect x="42" y="{30 + 2 * step - 13}" width="396" height="{2 * step + 80}" rx="10"'
        ' class="group"/>'
    )
    d.parts.append(
        f'<text transform="translate(32 {30 + 3 * step + 27}) rotate(-90)" class="small"'
        ' text-anchor="middle">executor: threads, or Ray</text>'
    )
    d.write(path, 30 + step * (len(rows) - 1) + 54 + 8)


def network(path: Path) -> None:
    """FCN-8s with the cells of a picture of 375x500 px."""
    d = Drawing(
        "FCN-8s: VGG-16 down to score_fr of 12x16 cells; upsampled by 2, joined with the score of "
        "pool4, by 2 again, with the score of pool3, then by 8 and cropped to the picture"
    )
    trunk, score, side = 20, 270, 190
    rows = [
        ("picture", "375x500 px, 100 px of zeros around"),
        ("conv1 - pool3", "72x88 cells, one per 8 px"),
        ("conv4, pool4", "36x44 cells, one per 16 px"),
        ("conv5, pool5", "18x22 cells, one per 32 px"),
        ("fc6, fc7", "as convolutions: 12x16 cells"),
    ]
    for number, (name, what) in enumerate(rows):
        y = 8 + 92 * number
        short = what if number else "375x500, zeros around"
        d.box((trunk, y, side, 54), [name, short], "tint" if not number else "box")
        if number:
            d.arrow([(trunk + side / 2, y - 38), (trunk + side / 2, y)])
    middle = score + side / 2
    d.box((score, 376, side, 54), ["score_fr", "one score per class"], "box")
    d.arrow([(trunk + side, 403), (score, 403)])
    d.arrow([(middle, 376), (middle, 246)])
    d.text(middle + 8, 316, "times 2", "small")
    d.box((score, 192, side, 54), ["+ score_pool4", "cropped by 5 cells"], "box")
    d.arrow([(trunk + side, 219), (score, 219)])
    d.arrow([(middle, 192), (middle, 154)])
    d.text(middle + 8, 178, "times 2", "small")
    d.box((score, 100, side, 54), ["+ score_pool3", "cropped by 9 cells"], "box")
    d.arrow([(trunk + side, 127), (score, 127)])
    d.arrow([(middle, 100), (middle, 62)])
    d.text(middle + 8, 86, "times 8", "small")
    d.box((score, 8, side, 54), ["mask", "cropped at 31 px; argmax"], "tint")
    d.write(path, 440)


def main() -> None:
    """Draw all diagrams."""
    flow(HERE / "flow.svg")
    chunk(HERE / "chunk.svg")
    network(HERE / "fcn8s.svg")


if __name__ == "__main__":
    main()
