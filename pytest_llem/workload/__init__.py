"""The requests that an engine is given: prompts from data sets or made of the corpus, and when they arrive.

The worker builds a workload after the model is loaded. Equal settings must give equal requests on every machine.
"""
