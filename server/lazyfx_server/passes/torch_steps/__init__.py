"""torch's own graph passes; their private names are used only in these files."""
