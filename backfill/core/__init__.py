"""Decisions: values in, values out. No file, clock, socket or random number is touched here."""
