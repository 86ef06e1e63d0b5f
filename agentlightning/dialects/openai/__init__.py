"""The OpenAI API, in the dialects of the engines and gateways that speak it."""
