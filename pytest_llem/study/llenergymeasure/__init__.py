"""Study files of LLenergyMeasure, read as studies."""
