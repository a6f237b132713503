"""Native artifacts that are sent before they are asked for, because a job asked for them before."""
