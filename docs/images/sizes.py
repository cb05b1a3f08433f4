"""Draw the picture of the README from the table of real models in docs/benchmarks.md: `python docs/images/sizes.py`."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "benchmarks.md"
# A row of that table, and how the picture names it.
BARS = {
    "MiniLM, sentences: 8 bits": "8 bits",
    "MiniLM, sentences: 4 bits, what counts most at 8": "4 bits",
    "magika, file types: 8 bits": "8 bits",
    "magika, file types: 4 bits, groups of 128, one small matrix at 8": "4 bits",
}
INK, GREY, BLUE = "#1f2328", "#c9d1d9", "#2f6fdf"


def rows() -> dict[str, tuple[float, str]]:
    """Return the size and what is left of each model of the table."""
    found = re.findall(r"^\| ([^|]+) \| ([0-9.]+) \| ([^|]+) \| [^|]+ \|$", PAGE.read_text(), re.M)
    return {name: (float(size), left) for name, size, left in found}


def text(x: float, y: float, words: str, more: str = "") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" fill="{INK}"{more}>{words}</text>'


def picture() -> str:
    """Return the picture as SVG: a bar for each file, as long as the file is large."""
    known, y, parts, model = rows(), 34, [], ""
    bold = ' font-weight="600"'
    for row, label in BARS.items():
        size, left = known[row]
        if row.split(":")[0] != model:
            model = row.split(":")[0]
            parts += [text(16, y + 4, model, bold), text(16, y + 30, "as it was")]
            parts.append(f'<rect x="110" y="{y + 16}" width="400" height="18" rx="2" fill="{GREY}"/>')
            parts.append(text(518, y + 30, "100 %"))
            y += 50
        parts.append(text(16, y + 4, label))
        parts.append(f'<rect x="110" y="{y - 10}" width="{400 * size:g}" height="18" rx="2" fill="{BLUE}"/>')
        parts.append(text(118 + 400 * size, y + 4, f"{round(100 * size)} % of the bytes, {left}"))
        y += 26
        if row == list(BARS)[1]:
            y += 22
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="630" height="{y + 2}" viewBox="0 0 630 {y + 2}"'
    head += ' font-family="Helvetica, Arial, sans-serif" font-size="14">\n<title>Sizes of two models</title>'
    return "\n".join([head, '<rect width="100%" height="100%" rx="6" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "sizes.svg").write_text(picture())
