"""Lines on what a model's folder holds that is not used, or not as its config.json says."""

import functools
import logging

log = logging.getLogger(__name__)


@functools.cache
def say(note: str) -> None:
    """Log a warning, once per process: a run checks and reads a model several times."""
    log.warning("%s", note)
