"""What Agent Lightning 0.3 has and this distribution has not: what it was, whether it comes, what does the same today.

One table. ``_lazy`` asks it for names and modules that are not found, the command line for commands, and the page on
compatibility is written from it. It is loaded when something was not found: a bare import does not pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Absent(NamedTuple):
    """One thing of 0.3 that is not here."""

    what: str
    """What it is in 0.3."""
    comes: bool
    """Whether it is to come."""
    today: str
    """What does the same today: a clause that needs no subject before it."""

    def sentence(self, name: str) -> str:
        """Return what an import or a command says."""
        if self.comes:
            return f"{name} (in Agent Lightning 0.3 {self.what}) is not here yet, and will come; today {self.today}"
        return f"{name} (in Agent Lightning 0.3 {self.what}) will not come; {self.today}"


AGENT = Absent(
    "the class or decorator that makes an agent",
    comes=True,
    today="any function is an agent: tracer.rollout(task) records a call of it as one rollout, as a with block or its "
    "decorator",
)
RUNNER = Absent(
    "the worker that takes rollouts from the store and runs an agent on them",
    comes=True,
    today="a loop over store.dequeue_rollout() does it, with tracer.trace_context() around the agent, as "
    "docs/how-to/several-processes.md shows",
)
TRAINER = Absent(
    "the loop of runners and an algorithm",
    comes=True,
    today="agentlightning.training.rollout_source runs agents for a training loop of your own",
)
ALGORITHM = Absent(
    "the frame of an algorithm that Trainer runs",
    comes=True,
    today="a function that calls store.enqueue_rollout and store.wait_for_rollouts is one",
)
EXECUTION = Absent(
    "the strategy that starts runners in threads or processes",
    comes=True,
    today="start them yourself: any number of processes may open one SQLite store",
)
STORE_SERVER = Absent(
    "the store behind HTTP",
    comes=True,
    today="all processes of one machine open the same file with open_store('sqlite:///agentlightning.db')",
)
LLM_PROXY = Absent(
    "the proxy in front of models that records token ids",
    comes=True,
    today="OtelTracer(capture_tokens='request') records them in the process of the agent",
)
PROXY_ADAPTER = Absent(
    "the adapter of what LLMProxy records",
    comes=True,
    today="TracerTraceToTriplet makes triplets of what the tracer records",
)
CONFIGURATION = Absent(
    "what makes objects of command lines and dictionaries",
    comes=True,
    today="call the constructors yourself",
)
METRICS = Absent(
    "what reports metrics", comes=True, today="store.statistics() and agl stats count what a store holds"
)
OTLP = Absent(
    "the way of spans over OTLP into a store server",
    comes=True,
    today="OtelTracer and LightningSpanExporter write to the store directly, and agentlightning.codec.otlp reads "
    "and writes OTLP",
)
SERVER_LAUNCHER = Absent(
    "what starts web servers in threads and processes", comes=True, today="uvicorn and gunicorn do that"
)
SNAPSHOT = Absent(
    "what a runner's heartbeat says of the machine",
    comes=True,
    today="store.update_worker takes any heartbeat_stats, of psutil for example",
)
APO = Absent(
    "the optimiser of prompts",
    comes=False,
    today="TraceToMessages gives the conversations and find_final_reward the rewards that such an optimiser needs",
)
VERL = Absent(
    "the training loop around verl",
    comes=False,
    today="agentlightning.exporters.verl gives rows to verl's own loop",
)
COLLECTIONS = Absent(
    "the way to write a store as collections",
    comes=False,
    today="subclass agentlightning.store.transaction.TransactionalStore",
)
MONGO = Absent(
    "the store in MongoDB", comes=False, today="open_store('sqlite:///agentlightning.db') is durable"
)
WEAVE = Absent("the tracer of Weave", comes=False, today="OtelTracer records the same calls without Weave")
FIRST_RELEASE = Absent(
    "the deprecated client and server of its first release",
    comes=False,
    today="use the store: open_store and OtelTracer",
)
INSTALLED = Absent(
    "a flag set at import",
    comes=False,
    today="importlib.util.find_spec says whether a package is installed",
)
INSTRUMENTATION = Absent(
    "the patch of one library",
    comes=False,
    today="OtelTracer reads calls and token ids from HTTP and needs none",
)
AGENTOPS_SERVICE = Absent(
    "the switch and exporters for AgentOps' own service",
    comes=False,
    today="AgentOpsTracer() sends nothing to it, and AgentOpsTracer(agentops_managed=False) leaves AgentOps to you",
)
MESSAGES_DETAIL = Absent(
    "a step of TraceToMessages", comes=False, today="call TraceToMessages().adapt(spans)"
)
STORE_TIMEOUT = Absent(
    "how long a span waits for the store", comes=False, today="no span waits: a thread writes them"
)
STATUS_CODE = Absent(
    "a helper of the tracer", comes=False, today="opentelemetry.trace.StatusCode['OK'] is what it returns"
)
BUCKETS = Absent("a constant of the metrics", comes=False, today="nothing here needs it")

MODULES = {
    "agentlightning.algorithm": ALGORITHM,
    "agentlightning.algorithm.apo": APO,
    "agentlightning.algorithm.verl": VERL,
    "agentlightning.cli.prometheus": METRICS,
    "agentlightning.cli.vllm": INSTRUMENTATION,
    "agentlightning.client": FIRST_RELEASE,
    "agentlightning.config": CONFIGURATION,
    "agentlightning.execution": EXECUTION,
    "agentlightning.instrumentation.agentops_langchain": INSTRUMENTATION,
    "agentlightning.instrumentation.litellm": INSTRUMENTATION,
    "agentlightning.instrumentation.vllm": INSTRUMENTATION,
    "agentlightning.instrumentation.weave": WEAVE,
    "agentlightning.litagent": AGENT,
    "agentlightning.llm_proxy": LLM_PROXY,
    "agentlightning.runner": RUNNER,
    "agentlightning.runner.legacy": FIRST_RELEASE,
    "agentlightning.server": FIRST_RELEASE,
    "agentlightning.store.client_server": STORE_SERVER,
    "agentlightning.store.collection": COLLECTIONS,
    "agentlightning.store.collection_based": COLLECTIONS,
    "agentlightning.store.mongo": MONGO,
    "agentlightning.tracer.weave": WEAVE,
    "agentlightning.trainer": TRAINER,
    "agentlightning.trainer.init_utils": CONFIGURATION,
    "agentlightning.utils.metrics": METRICS,
    "agentlightning.utils.otlp": OTLP,
    "agentlightning.utils.server_launcher": SERVER_LAUNCHER,
    "agentlightning.utils.system_snapshot": SNAPSHOT,
    "agentlightning.verl": VERL,
}
"""Modules of 0.3; what stands for a package stands for all below it that has no entry of its own."""

NAMES = {
    "APO": APO,
    "AGENTOPS_INSTALLED": INSTALLED,
    "AGENTOPS_LANGCHAIN_INSTALLED": INSTALLED,
    "AgentLightningClient": FIRST_RELEASE,
    "AgentLightningServer": FIRST_RELEASE,
    "Algorithm": ALGORITHM,
    "Baseline": ALGORITHM,
    "BypassableAuthenticatedOTLPExporter": AGENTOPS_SERVICE,
    "BypassableOTLPMetricExporter": AGENTOPS_SERVICE,
    "BypassableOTLPSpanExporter": AGENTOPS_SERVICE,
    "ClientServerExecutionStrategy": EXECUTION,
    "CollectionBasedLightningStore": COLLECTIONS,
    "DevTaskLoader": FIRST_RELEASE,
    "ExecutionEvent": EXECUTION,
    "ExecutionStrategy": EXECUTION,
    "FastAlgorithm": ALGORITHM,
    "LATENCY_BUCKETS": BUCKETS,
    "LITELLM_INSTALLED": INSTALLED,
    "LLMProxy": LLM_PROXY,
    "LegacyAgentRunner": FIRST_RELEASE,
    "LightningStoreClient": STORE_SERVER,
    "LightningStoreServer": STORE_SERVER,
    "LitAgent": AGENT,
    "LitAgentRunner": RUNNER,
    "LlmProxyTraceToTriplet": PROXY_ADAPTER,
    "MultiprocessingEvent": EXECUTION,
    "Runner": RUNNER,
    "STORE_WRITE_TIMEOUT_SECONDS": STORE_TIMEOUT,
    "ServerDataStore": FIRST_RELEASE,
    "SharedMemoryExecutionStrategy": EXECUTION,
    "ThreadingEvent": EXECUTION,
    "Trainer": TRAINER,
    "VERL": VERL,
    "VLLM_INSTALLED": INSTALLED,
    "WEAVE_INSTALLED": INSTALLED,
    "algo": ALGORITHM,
    "build_component": CONFIGURATION,
    "convert_to_openai_messages": MESSAGES_DETAIL,
    "enable_agentops_service": AGENTOPS_SERVICE,
    "group_genai_dict": MESSAGES_DETAIL,
    "lightning_cli": CONFIGURATION,
    "llm_rollout": AGENT,
    "prompt_rollout": AGENT,
    "rollout": AGENT,
    "to_otel_status_code": STATUS_CODE,
}
"""Names of 0.3. One word means one thing in all modules."""

COMMANDS = {
    "prometheus": Absent(
        "the server of the store's metrics", comes=False, today="agl stats counts what a store holds"
    ),
    "vllm": Absent(
        "the start of vLLM with its patch",
        comes=False,
        today="vllm serve needs none: it returns token ids to whoever asks, and agl run --capture-tokens request asks",
    ),
}
"""Commands of ``agl``."""

PLACES = {
    "agentlightning": (
        "APO AgentLightningClient AgentLightningServer Algorithm Baseline "
        "ClientServerExecutionStrategy CollectionBasedLightningStore DevTaskLoader ExecutionEvent "
        "ExecutionStrategy FastAlgorithm LLMProxy LegacyAgentRunner LightningStoreClient "
        "LightningStoreServer LitAgent LitAgentRunner LlmProxyTraceToTriplet MultiprocessingEvent "
        "Runner SharedMemoryExecutionStrategy ThreadingEvent Trainer VERL algo build_component "
        "lightning_cli llm_rollout prompt_rollout rollout"
    ),
    "agentlightning.adapter": "LlmProxyTraceToTriplet",
    "agentlightning.adapter.messages": "convert_to_openai_messages group_genai_dict",
    "agentlightning.adapter.triplet": "LlmProxyTraceToTriplet",
    "agentlightning.instrumentation": (
        "AGENTOPS_INSTALLED AGENTOPS_LANGCHAIN_INSTALLED LITELLM_INSTALLED VLLM_INSTALLED WEAVE_INSTALLED"
    ),
    "agentlightning.instrumentation.agentops": (
        "BypassableAuthenticatedOTLPExporter BypassableOTLPMetricExporter "
        "BypassableOTLPSpanExporter enable_agentops_service"
    ),
    "agentlightning.store": "CollectionBasedLightningStore LightningStoreClient LightningStoreServer",
    "agentlightning.store.utils": "LATENCY_BUCKETS",
    "agentlightning.tracer.otel": "STORE_WRITE_TIMEOUT_SECONDS to_otel_status_code",
}
"""Modules that are here → names that 0.3 has in them, and we have not."""


def module(name: str) -> Absent | None:
    """Return what is known of a module of 0.3 that is not here; ``name`` is its full one."""
    while name:
        if found := MODULES.get(name):
            return found
        name = name.rpartition(".")[0]
    return None


def attribute(of: str, name: str) -> Absent | None:
    """Return what is known of a name of 0.3 that the module ``of`` has not: a class, a function or a module."""
    return NAMES[name] if name in PLACES.get(of, "").split() else module(f"{of}.{name}")


def command(words: Sequence[str]) -> str | None:
    """Return what to say to a command line of 0.3: the words after ``agl``."""
    first, rest = (words[0], words[1:]) if words else ("", ())
    if found := COMMANDS.get(first):
        return found.sentence(f"agl {first}")
    # 0.3 serves where ours has subcommands; an option other than --help can only be one of 0.3's server.
    if first == "store" and (not rest or (rest[0].startswith("-") and rest[0] not in {"-h", "--help"})):
        if "mongo" in rest or "--backend=mongo" in rest:
            return MONGO.sentence("agl store --backend mongo")
        return f"{STORE_SERVER.sentence('agl store as a server')}, and agl store has the actions check and migrate"
    return None
