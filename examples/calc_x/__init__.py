"""A tool-using arithmetic agent with a calculator over MCP, recorded and trained; see ``README.md``."""
