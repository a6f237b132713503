"""Load on a small fleet while its parts are killed, frozen, cut off and damaged; then the books."""
