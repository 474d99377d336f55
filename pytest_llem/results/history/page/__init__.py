"""The trend page: a history as a static page with a panel per experiment."""
