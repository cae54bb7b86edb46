"""The measurements of docs/theory.md that no other command prints."""
