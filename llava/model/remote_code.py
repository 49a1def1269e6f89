"""Code beside the weights: what a checkpoint needs so that transformers opens it where this package is not installed.

transformers runs the files that a checkpoint's `auto_map` names, and what they import from beside them
(`trust_remote_code=True`). These files are made from the modules here that the model and its processor import: each
becomes one file of the folder, `llava/model/splice.py` -> `llava_model_splice.py`, and nothing in it is changed but how
it imports the others. Where this package is installed, transformers takes its classes from here instead.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from llava.model.shipped import ENTRY, PROCESSOR

PACKAGE = "llava"
PROVIDED = {"torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub", "jinja2", "tokenizers", "yaml"}
"""Packages that are there wherever transformers and torch are (PIL: for pixels), and may be imported at the top."""
STARTS = (f"{PACKAGE}.model.language_model.causal_lm", f"{PACKAGE}.model.processor")


def remote_code(model_class: Any) -> dict[str, str]:
    """File names and their text: a file for each module, and `modeling_llava.py`, which has the classes.

    Args:
        model_class: one of `causal_lm_class`.
    """
    files = dict(_module_files((*STARTS, model_class.__module__)))
    # transformers reads the names of the files to take along from lines of this form. They are not run: some files need
    # packages that only those need who use them (av, for a path).
    needed = "\n".join(f"    from .{name.removesuffix('.py')} import __name__ as _" for name in sorted(files))
    kind = model_class.config_class.model_type
    source = f'''"""{model_class.__name__}, its config and its processor, for transformers' Auto classes.

Made from the modules of the package llava (llava-video) that trained this model, whose text the files `llava_*.py` are.
"""

if False:
{needed}
from .{_flat(STARTS[0])} import causal_lm_class
from .{_flat(STARTS[1])} import {PROCESSOR}

{model_class.__name__} = causal_lm_class("{kind}")
{model_class.config_class.__name__} = {model_class.__name__}.config_class
'''
    return {**files, f"{ENTRY}.py": source}


@cache
def _module_files(starts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{_flat(module)}.py", flattened(_source(module))) for module in sorted(_needed(starts)))


def _needed(starts: tuple[str, ...]) -> set[str]:
    """The modules here that modules import, at the top or later."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            tree = ast.parse(_source(module))
            waiting += [name for node in ast.walk(tree) for name, *_ in _own_imports(node)]
            waiting += [node.value for node in ast.walk(tree) if _names_module(node)]
    return found


def flattened(source: str) -> str:
    """A module's text with its imports as they are in a folder without packages.

    Modules of this package are imported from beside it. What transformers would take for a package that must be there
    is imported within `try`, as it is only needed by some.

    Raises:
        ValueError: for an import in a form that is not understood.
    """
    lines = source.splitlines(keepends=True)
    changes: list[tuple[int, int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            text = _import_line(node)
            if text is not None:
                changes.append((node.lineno - 1, node.end_lineno or node.lineno, text))
        elif _names_module(node):
            row = node.lineno - 1
            lines[row] = lines[row].replace(f'"{node.value}"', f'f"{{__package__}}.{_flat(node.value)}"')
    for start, end, text in sorted(changes, reverse=True):
        indent = re.match(r"\s*", lines[start])[0]  # type: ignore[index]
        lines[start:end] = [f"{indent}{line}\n" for line in text.splitlines()]
    return "".join(lines)


def _import_line(node: ast.Import | ast.ImportFrom) -> str | None:
    """What stands for an import in a flat folder; None where it stays as it is."""
    own = list(_own_imports(node))
    if own:
        if isinstance(node, ast.Import):
            raise ValueError(f"line {node.lineno}: `import {own[0][0]}` has no flat form: import names from it")
        return "\n".join(
            f"from .{_flat(module)} import {name} as {alias}" if name else
            f"from .{_flat(module)} import __name__ as _\nimport sys as _sys\n"
            f'{alias} = _sys.modules[f"{{__package__}}.{_flat(module)}"]'
            for module, name, alias in own
        )  # fmt: skip
    imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
    packages = {name.split(".")[0] for name in imported}
    if packages <= PROVIDED | set(sys.stdlib_module_names):
        return None
    return f"try:\n    {ast.unparse(node)}\nexcept ImportError:\n    raise"


def _own_imports(node: ast.AST) -> Iterator[tuple[str, str | None, str]]:
    """Modules of this package that a statement imports, each with the name taken from it (None: itself) and the name
    that it gets."""
    if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).split(".")[0] == PACKAGE:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            if _is_module(whole):
                yield whole, None, alias.asname or alias.name
            else:
                yield str(node.module), alias.name, alias.asname or alias.name
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == PACKAGE:
                yield alias.name, None, alias.asname or alias.name


def _names_module(node: Any) -> bool:
    """Whether a node is a text that names a module here, as `import_module` takes it."""
    text = node.value if isinstance(node, ast.Constant) else None
    return isinstance(text, str) and text.startswith(f"{PACKAGE}.model.") and _is_module(text)


@cache
def _is_module(name: str) -> bool:
    try:
        return re.fullmatch(r"[\w.]+", name) is not None and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"{module}: no such module")
    return Path(spec.origin).read_text(encoding="utf-8")


def _flat(module: str) -> str:
    return module.replace(".", "_")
