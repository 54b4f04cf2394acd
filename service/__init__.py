"""HTTP in, questions out."""
