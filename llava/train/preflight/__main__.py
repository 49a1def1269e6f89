"""Pre-flight alone: `python -m llava.train.preflight` with the flags of the run."""

from llava.errors import run_command
from llava.train.preflight.run import main

if __name__ == "__main__":
    run_command(main)
