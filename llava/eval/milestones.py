"""`python -m llava.eval.milestones`, the command of `llava.report.milestones`."""

from llava.errors import run_command
from llava.report.milestones import main

if __name__ == "__main__":
    run_command(main)
