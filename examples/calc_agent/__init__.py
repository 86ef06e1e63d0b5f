"""A policy learns on the CPU to use a calculator, from the traces of an ordinary agent; see ``README.md``."""
