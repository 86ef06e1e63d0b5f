"""AgentOps: what it is patched with, and a server on this machine that stands in for its cloud."""
