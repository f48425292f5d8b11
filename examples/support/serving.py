"""How the playground is served: to this machine, with nothing fetched from elsewhere, and errors as sentences."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from html import escape
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi.middleware import Middleware

import minti
from minti.runs.messages import shortened

with suppress(ImportError):  # gradio asks for it at the first click, which would wait for the import
    import matplotlib

    matplotlib.use("agg")

CSS = """
.gradio-container {max-width: 1100px !important; margin: auto !important; width: 100%}
img {image-rendering: pixelated}
label[data-testid="block-label"] {position: static !important; border: 0 !important}  /* above a picture, not on it */
.row.seen .image-container {aspect-ratio: 1}  /* keeps its place while the next picture is fetched */
[data-testid="status-tracker"] :is(.error, .clear-status) {display: none}  /* the sentence is enough */
"""
# On a click, to where the pictures come about, if that is out of sight as on a telephone.
SCROLL = """(...asked) => {
    const seen = [...document.querySelectorAll(".seen")].find((each) => each.offsetParent);
    seen?.scrollIntoView({block: "nearest", behavior: "smooth"});
    return asked;
}"""
UPLOADED = re.escape(os.path.join(tempfile.gettempdir(), "gradio", "")) + r"\w+[/\\]"  # the folder of a visitor's file
# A browser that is told so asks nobody else, whatever a component would like to fetch.
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"


class OnlyHere:
    """Says with every answer that the page may fetch from this machine alone."""

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def told(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, told)


def plainly(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """What goes wrong becomes a sentence on the page."""

    @wraps(function)
    def told(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except (ValueError, OSError, minti.TrainingError) as error:
            said = shortened(re.sub(UPLOADED, "", str(error)), 500)
            raise gr.Error(escape(said, quote=False), duration=20, print_exception=False) from None

    return told


def serve(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, **options: Any) -> str:
    """Its address; comes back when the page is closed, or with `prevent_thread_lock` at once."""
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(OnlyHere)]},
        **options,
    )[1]
