"""One file per question, with the question in its first line; adding a file asks it."""
