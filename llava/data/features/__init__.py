"""Features of a frozen tower: computed once, kept on disk, served to every epoch."""
