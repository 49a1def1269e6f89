"""The commands that an installation brings: each is the `main` of a module, as `python -m MODULE` runs it.

`pyproject.toml` names them; a command imports its module when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from llava.errors import run_command


def _command(module: str) -> Callable[[], NoReturn]:
    def command() -> NoReturn:
        run_command(import_module(module).main)

    return command


caption = _command("llava.serve.cli")
check = _command("llava.data.check")
clean = _command("llava.clean")
controls = _command("llava.eval.controls")
convert = _command("llava.data.convert.__main__")
convert_weights = _command("llava.commands.convert_weights")
export = _command("llava.export")
extract = _command("llava.commands.extract")
make_model = _command("llava.commands.make_model")
merge_lora = _command("llava.commands.merge_lora")
preflight = _command("llava.train.preflight.run")
report = _command("llava.report.page")
score = _command("llava.eval.captioning")
split = _command("llava.data.split.__main__")
study = _command("llava.study.__main__")
train = _command("llava.train.train")
web = _command("llava.serve.web")
