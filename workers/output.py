"""What this process prints is redacted."""

from __future__ import annotations

import os
import sys

from workers.redaction import RedactedStream, Redactor, secrets_of


def redact_output() -> None:
    """From now on nothing secret of this process's environment is printed, by nobody's Python code."""
    redactor = Redactor(secrets_of(os.environ))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, RedactedStream(stream, redactor))
