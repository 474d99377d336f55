"""How right an answer is, by the answer key of its question. No window is open while anything here runs."""
