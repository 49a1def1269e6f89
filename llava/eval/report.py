"""`python -m llava.eval.report`, the command of `llava.report.page`."""

from llava.errors import run_command
from llava.report.page import main

if __name__ == "__main__":
    run_command(main)
