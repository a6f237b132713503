"""Jobs on their way to worker processes and back."""
