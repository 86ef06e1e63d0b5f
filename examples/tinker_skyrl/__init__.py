"""Tinker's client trains a tiny Llama on SkyRL's server, on recorded rollouts; see ``README.md``."""
