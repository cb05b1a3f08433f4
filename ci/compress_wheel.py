"""Compress wheels again, with zopfli: `python ci/compress_wheel.py FOLDER`.

The same files in the same order, with their dates and permissions, as deflate streams of about 3 % fewer bytes, which
every unzip reads. `RECORD` has the hashes of the files themselves and stays as it is. It takes some minutes.
"""

import sys
import zipfile
from pathlib import Path

import zopfli


def contents(path: Path) -> list[tuple[str, int, bytes]]:
    """Name, mode and bytes of each file."""
    with zipfile.ZipFile(path) as wheel:
        return [(each.filename, each.external_attr, wheel.read(each)) for each in wheel.infolist()]


def compress(path: Path) -> tuple[int, int]:
    """Compress a wheel; return its bytes before and after."""
    before, smaller = path.stat().st_size, path.with_suffix(".zopfli")
    with zipfile.ZipFile(path) as old, zopfli.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.infolist():
            new.writestr(each, old.read(each))
    if contents(smaller) != contents(path):
        raise SystemExit(f"{smaller} does not hold what {path} holds")
    if smaller.stat().st_size < before:
        smaller.replace(path)
    smaller.unlink(missing_ok=True)
    return before, path.stat().st_size


def main() -> None:
    """Compress all of a folder."""
    for path in sorted(Path(sys.argv[1]).glob("*.whl")):
        before, after = compress(path)
        print(f"{path.name}: {before:,} bytes, {after:,} with zopfli")


if __name__ == "__main__":
    main()
