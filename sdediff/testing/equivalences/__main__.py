"""``python -m sdediff.testing.equivalences`` prints the table that stands in docs/testing.md."""

from sdediff.testing.equivalences import markdown

print(markdown())
