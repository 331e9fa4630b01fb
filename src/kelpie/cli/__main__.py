"""``python -m kelpie.cli``."""

from __future__ import annotations

import sys

from kelpie.cli import main

sys.exit(main())
