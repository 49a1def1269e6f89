"""The page in Gradio: its parts, what happens between them, and its server, which nobody reaches from elsewhere.

Annotations are looked at here, unlike in other modules: Gradio reads those of what it calls.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llava.data.chat_formats import PLAIN
from llava.errors import UnwritableFile, show
from llava.serve.page import Page
from llava.serve.result import CSS, hint_html

if TYPE_CHECKING:
    import gradio

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; form-action 'self'; frame-ancestors 'self'"
)
"""What the browser may load: nothing that is not from this server, whatever Gradio's page asks for."""
LARGEST_FILE = "2gb"
HINT = "Drop a clip, or choose an example."


def build(page: Page, heading: str, note: str = "") -> "gradio.Blocks":
    """The page's parts and what happens between them.

    Args:
        note: why there are no examples.
    """
    import gradio as gr

    is_plain = page.captioner.text_format.version == PLAIN
    with gr.Blocks(title="A model's captions", analytics_enabled=False) as blocks:
        gr.Markdown(heading)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                clip = gr.File(label="Drop a clip", type="filepath", height=150, elem_id="clip")
                if page.examples:
                    gr.Markdown("Or choose an example:")
                    gallery = gr.Gallery(
                        [example.frame for example in page.examples], show_label=False, container=False, columns=4,
                        height="auto", allow_preview=False, interactive=False, object_fit="contain",
                        elem_id="examples", buttons=[],
                    )  # fmt: skip
                else:
                    gr.Markdown(f"No examples: {show(note)}. `--examples DIR` names a folder of clips.")
                with gr.Accordion("More", open=False):
                    other = gr.File(label="Another clip to compare with", type="filepath", height=150, elem_id="other")
                    prompt = gr.Textbox(
                        label="Text that the caption continues" if is_plain else "Question", value="", elem_id="prompt"
                    )
                    given = gr.Textbox(
                        label="A text of yours, whose words are coloured too", value="", elem_id="given", lines=2
                    )
                    again = gr.Button("Again")
            with gr.Column(scale=2, min_width=300):
                result = gr.HTML(hint_html(HINT), elem_id="result")
        # The clip in view: an example's place, or -1 for the file that was dropped.
        chosen = gr.State(-1)
        rest = [other, prompt, given]

        def on_file(path: str | None, *rest: Any) -> tuple[str, int]:
            return page.show_file(path, *rest), -1

        def on_again(index: int, path: str | None, *rest: Any) -> str:
            return page.show_example(index, *rest) if index >= 0 else page.show_file(path, *rest)

        # One after the other, since they share the model.
        options = {"api_visibility": "private", "concurrency_id": "model"}
        clip.upload(on_file, [clip, *rest], [result, chosen], **options)
        gr.on([again.click, prompt.submit, given.submit], on_again, [chosen, clip, *rest], result, **options)
        if page.examples:

            def on_example(event: gr.SelectData, *rest: Any) -> tuple[str, int]:
                return page.show_example(event.index, *rest), event.index

            gallery.select(on_example, rest, [result, chosen], **options)
    return blocks


class OnlyFromHere:
    """ASGI middleware that tells the browser to load nothing from elsewhere (`POLICY`)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def launch(blocks: "gradio.Blocks", host: str, port: int | None) -> str:
    """Starts the server in a thread and returns its address.

    Raises:
        OSError: when it cannot listen there.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    # Fonts of the system, and none from the web.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = blocks.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
            ssr_mode=False, footer_links=[], enable_monitoring=False, pwa=False, mcp_server=False, css=CSS,
            theme=theme, max_file_size=LARGEST_FILE, app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
        )  # fmt: skip
    except OSError as error:
        raise UnwritableFile(
            f"--host {host} --port {port or 'from 7860 on'}: nothing can listen there, since the port is taken or the "
            "address is none of this machine; name another"
        ) from error
    return address
