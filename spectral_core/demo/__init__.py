"""What the demo computes and shows, free of any web framework but for `page`."""

from spectral_core.demo.head import HeadView, head_view
from spectral_core.demo.live import correct, corrections_differ
from spectral_core.demo.settings import (
    ARMS,
    CHOICES,
    INITS,
    KINDS,
    LIMITS,
    PRESERVES,
    RANGES,
    ROLES,
    SCOPES,
    SEED_MAX,
    SOURCES,
    Settings,
    control_names,
    parse_settings,
    to_query,
)

__all__ = [
    "ARMS", "CHOICES", "INITS", "KINDS", "LIMITS", "PRESERVES", "RANGES", "ROLES", "SCOPES", "SEED_MAX", "SOURCES",
    "HeadView", "Settings", "control_names", "correct", "corrections_differ", "head_view", "parse_settings", "to_query",
]  # fmt: skip
