"""Check the licences of all crates in the wheel: `python ci/licenses.py`. Each must allow what is in `ALLOWED`."""

import json
import re
import subprocess
import sys

ALLOWED = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "Unicode-3.0", "Zlib"}


def allows(expression: str) -> bool:
    """Whether a licence expression can be met: each of what is joined by AND, one of what is joined by OR."""
    text = expression.replace("/", " OR ")
    parts = re.split(r"\s+AND\s+(?![^(]*\))", text)
    return all(any(each.strip(" ()") in ALLOWED for each in re.split(r"\s+OR\s+", part.strip(" ()"))) for part in parts)


def main() -> int:
    """Print each crate whose licence is not allowed."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["packages"]
    odd = [
        f"{each['name']} {each['version']}: {each['license']}" for each in packages if not allows(each["license"] or "")
    ]
    print("\n".join(odd) or f"{len(packages)} crates, all under licences that are allowed")
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
