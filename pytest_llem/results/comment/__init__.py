"""Comment: a run's verdict as one Markdown text for a pull request, and the way to post it."""
