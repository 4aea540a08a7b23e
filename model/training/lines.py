"""Files of metrics: one JSON object a line, read while another process may be writing the last one.

Without torch: a run and its report read them too (`metrics_log.py` writes).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines, in order; none where there is no file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # half written
            continue
    return found
