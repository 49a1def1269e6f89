"""A page to try a model on clips, on this machine alone: `python -m llava.serve.web --model-path DIR`."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from llava.config.commands import parse, refuse
from llava.config.groups import ModelFlags
from llava.config.ranges import COUNT, Range
from llava.errors import run_command, show
from llava.eval.captioning import Captioner
from llava.eval.data import device_of
from llava.serve.blocks import build, launch
from llava.serve.examples import examples_in, examples_of_run
from llava.serve.page import Page

PROG = "python -m llava.serve.web"
LOOPBACK = "127.0.0.1"
INSTALL = 'it needs Gradio, which is not installed: pip install "llava-italian-video[web]", or gradio with "pillow<13"'


@dataclass
class WebFlags:
    """The page."""

    _argument_group_name = "page"
    ranges = {"port": Range(1, 65535, whole=True), "max_new_tokens": COUNT}

    examples: str | None = field(
        default=None,
        metadata={"help": "Folder of clips to try; by default those of the run's own data, if they are there."},
    )
    host: str = field(
        default=LOOPBACK, metadata={"help": "Address to listen at; 0.0.0.0 lets everybody in who reaches this machine."}
    )
    port: int | None = field(default=None, metadata={"help": "Port; by default the first free one from 7860 on."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest caption in tokens."})


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def stay_here(uploads: str) -> None:
    """Sets what Gradio reads when it is imported and started: it would otherwise report its use, keep uploads for ever,
    and look for its own server through a proxy.
    """
    local = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": uploads,
        "no_proxy": ",".join(filter(None, local)),
        "NO_PROXY": ",".join(filter(None, local)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """A page in the browser: drop a clip, see the frames that the model sees, its caption, that of another clip and
    of a black one, and how much the video helped each word.

    It listens on this machine alone and connects to nothing.
    """
    trained, flags = parse(main.__doc__, ModelFlags, WebFlags, argv=argv, prog=PROG)
    if find_spec("gradio") is None:
        refuse(INSTALL, PROG)
    disable_progress_bar()
    note = ""
    try:
        if flags.examples:
            examples = examples_in(flags.examples)
        else:
            examples, note = examples_of_run(trained.model_path)
        captioner = Captioner.from_pretrained(trained.model_path, device_of(trained.device), trained.vision_tower)
    except (OSError, ValueError, RuntimeError) as error:  # torch: a device that is not there
        refuse(error, PROG)
    if not is_loopback(flags.host):
        print(f"{PROG}: --host {flags.host}: everybody who reaches this machine can use the page")
    name = show(Path(trained.model_path).resolve().name)
    with tempfile.TemporaryDirectory(prefix="llava-web-") as uploads:
        stay_here(uploads)
        blocks = build(Page(captioner, examples, flags.max_new_tokens), f"# {name}", note)
        try:
            address = launch(blocks, flags.host, flags.port)
        except OSError as error:
            refuse(error, PROG)
        print(f"{PROG}: {address} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    return 0


if __name__ == "__main__":
    run_command(main)
