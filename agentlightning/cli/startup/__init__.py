"""The folder that ``agl run`` puts first on ``PYTHONPATH``; Python imports its ``sitecustomize`` at start."""
