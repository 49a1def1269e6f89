"""`python -m llava.data.extract`, the command of `llava.commands.extract`."""

from llava.commands.extract import main
from llava.errors import run_command

if __name__ == "__main__":
    run_command(main)
