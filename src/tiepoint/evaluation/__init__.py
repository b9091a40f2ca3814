"""The field's protocols, one file each, on shared measures: see docs/evaluation.md."""
