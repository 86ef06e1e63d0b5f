"""TRL: a ``rollout_func`` for its ``GRPOTrainer``, and a rollout worker for its ``AsyncGRPOTrainer``.

The first takes exactly one row per prompt, in the shape of :mod:`agentlightning.exporters.trl`. The second takes every
row of a rollout, and the versions that it was sampled by.

>>> with tracer.lifespan(store), as_rollout_func(agent, store=store, tracer=tracer) as rollout_func:
>>>     GRPOTrainer(model, reward_funcs=[trace_reward], rollout_func=rollout_func, …).train()
"""

from .rollout_func import RolloutFunction, as_rollout_func
from .worker import TraceRolloutWorker

__all__ = ["RolloutFunction", "TraceRolloutWorker", "as_rollout_func"]
