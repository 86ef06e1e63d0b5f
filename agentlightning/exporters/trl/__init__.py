"""TRL: ``rollout_func`` of its ``GRPOTrainer``, and a rollout worker for its ``AsyncGRPOTrainer``.

The first takes exactly one row per prompt. A rollout without one gets a row that trains nothing: one token, masked,
unscored, out of every baseline; one with several gives its longest. The second takes every row of a rollout, and the
versions that it was sampled by. TRL checks next to nothing of what it is given (short masks train the environment's
tokens), so everything is checked here.

>>> with tracer.lifespan(store), as_rollout_func(agent, store=store, tracer=tracer) as rollout_func:
>>>     GRPOTrainer(model, reward_funcs=[trace_reward], rollout_func=rollout_func, …).train()
"""

from .rollout_func import RolloutFunction, as_rollout_func
from .rows import OnFork, Rollouts, check_tokens, rollout_dict, trace_reward
from .worker import TraceRolloutWorker

TESTED_WITH = "trl 1.16.0"

__all__ = [
    "TESTED_WITH",
    "OnFork",
    "RolloutFunction",
    "Rollouts",
    "TraceRolloutWorker",
    "as_rollout_func",
    "check_tokens",
    "rollout_dict",
    "trace_reward",
]
