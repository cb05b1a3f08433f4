"""The mutators import each other, from wherever pytest is called."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
