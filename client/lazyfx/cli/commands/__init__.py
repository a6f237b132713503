"""The commands of `lazyfx`, one file each."""
