"""Native compiles, each in a process that exits afterwards."""
