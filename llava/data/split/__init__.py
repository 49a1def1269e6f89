"""Which clips are held out of training, so that no copy of one is on both sides: `python -m llava.data.split`."""
