"""`python -m modelopt_rs`: the same as the command `modelopt-rs`."""

import sys

from modelopt_rs.cli import main

sys.exit(main())
