"""Captions as others write them to the trainer's records: `python -m llava.data.convert`."""
