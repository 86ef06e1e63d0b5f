"""Old import paths of Agent Lightning 0.3: leaves that nobody inside imports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if not TYPE_CHECKING:  # a checker would take any name for one of this module
    __getattr__ = _lazy.without_absent(__name__)
