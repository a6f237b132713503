"""Native artifacts: where they run, what they depend on, and how they are loaded."""
