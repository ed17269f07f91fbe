"""Tests of deploykit.advise."""
