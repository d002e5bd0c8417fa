"""The sections that every run has, and what their checks need: they import no torch, whose import takes seconds."""
