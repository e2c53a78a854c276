"""How the properties of the core are run: in any order, on a slow machine too, with the failing example printed."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None, print_blob=True)
settings.load_profile("core")
