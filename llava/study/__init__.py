"""Does seeing help? Runs that differ in what is seen alone, and what they say."""
