"""Studies: methods, settings and seeds in one command, with a table over seeds."""
