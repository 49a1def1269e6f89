"""What must hold before the first step."""
