from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]
