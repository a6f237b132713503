"""What comes from a server: held against what was asked for, and against bounds."""
