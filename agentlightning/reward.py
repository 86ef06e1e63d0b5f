"""0.2's and 0.3's import path of the rewards; also callable, because there ``reward`` is the decorator, too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        "agentlightning.emitter.reward": (
            "emit_reward",
            "find_final_reward",
            "find_reward_spans",
            "get_reward_value",
            "get_rewards_from_span",
            "is_reward_span",
            "reward",
        ),
    },
)


class _ModuleThatDecorates(ModuleType):
    def __call__(self, fn: Callable[..., Any]) -> Any:
        return self.reward(fn)


sys.modules[__name__].__class__ = _ModuleThatDecorates
