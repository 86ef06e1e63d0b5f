"""A tiny Llama learns a multi-turn tool task on the CPU, trained by TRL from recorded rollouts; see ``README.md``."""
