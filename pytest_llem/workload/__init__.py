"""The requests that an engine is given: prompts from data sets or made of the corpus, and when they arrive.

The worker builds a workload after the model is loaded. Equal settings must give equal requests on every machine.
"""

from pytest_llem.workload.build import Workload, build_workload, token_hash

__all__ = ["Workload", "build_workload", "token_hash"]
