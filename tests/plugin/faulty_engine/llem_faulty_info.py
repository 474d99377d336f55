"""What pytest knows of the faulty engine without importing it."""

from pytest_llem.engines.info import EngineInfo

# Imported before its workers are forked: most of a cycle is else the import of our own modules.
INFO = EngineInfo(name="faulty", engine="llem_faulty:FaultyEngine", preload=("llem_faulty",))
