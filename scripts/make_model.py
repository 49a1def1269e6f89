"""`python scripts/make_model.py`, the command of `llava.commands.make_model`, by its name of old."""

from llava.commands.make_model import main
from llava.errors import run_command

if __name__ == "__main__":
    run_command(main)
