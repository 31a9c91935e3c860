"""The pool step."""
