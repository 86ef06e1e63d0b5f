"""A model on loopback that answers as vLLM does, with the standard library: what both releases' programs call."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = (
    ("The answer is 7.", [11, 12, 13, 14], [-0.1, -0.2, -0.3, -0.4]),
    ("I am sure.", [21, 22, 23], [-0.5, -0.6, -0.7]),
)
PROMPTS = ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 11, 12, 13, 14, 6, 7])


def _answer(number: int, request: dict[str, Any]) -> dict[str, Any]:
    text, ids, logprobs = ANSWERS[number % len(ANSWERS)]
    words = text.split(" ")
    tokens = [*words[: len(ids) - 1], " ".join(words[len(ids) - 1 :])]
    entries = [
        {"token": token, "bytes": list(token.encode()), "logprob": logprob, "top_logprobs": []}
        for token, logprob in zip(tokens, logprobs, strict=True)
    ]
    prompt = PROMPTS[number % len(PROMPTS)]
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": request["model"],
        "prompt_token_ids": prompt,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": {"content": entries} if request.get("logprobs") else None,
                "token_ids": ids,
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "total_tokens": len(prompt) + len(ids),
        },
    }


class _Handler(BaseHTTPRequestHandler):
    answered = 0

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(_answer(type(self).answered, request)).encode()
        type(self).answered += 1
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def start() -> str:
    """Start the model and return its base URL; it ends with the process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"
