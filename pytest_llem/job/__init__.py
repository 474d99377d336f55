"""The exchange format between the pytest process and a worker: records, files and their encoding."""
