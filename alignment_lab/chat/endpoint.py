"""One model as an OpenAI-compatible endpoint, through the server of transformers.

That server would load whatever a client names; here it has this model alone, as the lab loads it.
"""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..runtime.errors import UserError
from .settings import ChatSettings, CommandLine, StartSettings
from .speaker import Speaker, load_speakers

if TYPE_CHECKING:
    from fastapi import FastAPI

PACKAGES = ("fastapi", "uvicorn", "openai", "pydantic")  # of the extra `serve`
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health")
GREEDY = 1e-6  # a temperature; at 0 the server would not heed a client's own
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(words: CommandLine) -> None:
    """Serve until a signal ends it. Raises UserError for a missing package, and where the port is taken."""
    _require_packages()
    with _listen(words.start) as listener:
        (speaker,) = load_speakers(words, Console(stderr=True))

        import uvicorn
        from transformers.utils import logging

        logging.set_verbosity_error()  # it warns of every request
        set_defaults(speaker, words.chat)
        server = uvicorn.Server(uvicorn.Config(build_app(speaker), log_level="warning"))
        host, port = words.start.host, words.start.port
        for line in _greeting(speaker, host, port):
            print(line, flush=True)
        server.run(sockets=[listener])


def set_defaults(speaker: Speaker, settings: ChatSettings) -> None:
    """How an answer is drawn where a client does not say: by the settings, and ended as in training."""
    import torch
    from transformers import GenerationConfig

    speaker.model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature or GREEDY,
        top_p=settings.top_p,
        top_k=0,
        eos_token_id=speaker.stop_ids,
        pad_token_id=speaker.tokenizer.pad_token_id,
    )
    torch.manual_seed(settings.seed)


def build_app(speaker: Speaker) -> FastAPI:
    """The server of transformers, of which the routes remain that use one model and load none."""
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState

    class OneModel(ModelManager):
        """Has one model, and refuses requests for another."""

        def __init__(self) -> None:
            super().__init__()
            self.force_model = speaker.name

        def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
            return speaker.model, speaker.tokenizer

        def get_gen_models(self, *_: Any) -> list[dict[str, Any]]:
            return [{"id": speaker.name, "object": "model", "created": 0, "owned_by": "alignment_lab"}]

    manager, state = OneModel(), GenerationState()
    app = build_server(
        manager,
        ChatCompletionHandler(manager, state),
        CompletionHandler(manager, state),
        ResponseHandler(manager, state),
        TranscriptionHandler(manager, state),
        SystemOneHandler(manager, state),
        state,
    )
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") in PATHS]
    return app


def _require_packages() -> None:
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"--serve: {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed; "
            "pip install -e .[serve] -c constraints.txt."
        )


def _listen(start: StartSettings) -> socket.socket:
    """The socket of the endpoint, before a model is loaded for it. Raises UserError."""
    where = f"host={start.host} port={start.port}"
    try:
        family = socket.AF_INET6 if ":" in start.host else socket.AF_INET
        return socket.create_server((start.host, start.port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: cannot be listened on ({reason}); give another one.") from None


def _greeting(speaker: Speaker, host: str, port: int) -> list[str]:
    lines = [
        f"{speaker.name}: {speaker.description}",
        f"http://{host}:{port}/v1 with model={speaker.name}; Ctrl-C ends it",
    ]
    if host not in LOCAL:
        lines.append("whoever reaches this address can use it: there is no password")
    return lines
