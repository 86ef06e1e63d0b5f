"""Reversible patches that let us see what an agent's libraries do."""
