"""Command lines that need several rooms."""
