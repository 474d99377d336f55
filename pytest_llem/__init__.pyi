"""Types of the public names: see `__init__.py`, which finds each of them when it is asked for.

Type checkers and the documentation read this file; nothing imports it. A test holds it and `__init__.py` together.
"""

from pytest_llem.containers.errors import DockerError as DockerError
from pytest_llem.containers.errors import translate_docker_error as translate_docker_error
from pytest_llem.energy.protocol import Meter as Meter
from pytest_llem.energy.protocol import MeterRequest as MeterRequest
from pytest_llem.engines.protocol import Capabilities as Capabilities
from pytest_llem.engines.protocol import Completion as Completion
from pytest_llem.engines.protocol import Engine as Engine
from pytest_llem.engines.protocol import Request as Request
from pytest_llem.engines.protocol import Tokenizer as Tokenizer
from pytest_llem.errors import DeviceError as DeviceError
from pytest_llem.errors import EngineError as EngineError
from pytest_llem.errors import EngineNotInstalledError as EngineNotInstalledError
from pytest_llem.errors import EngineSettingError as EngineSettingError
from pytest_llem.errors import LlemError as LlemError
from pytest_llem.errors import MeterError as MeterError
from pytest_llem.errors import ModelNotFoundError as ModelNotFoundError
from pytest_llem.errors import OutOfMemoryError as OutOfMemoryError
from pytest_llem.errors import RunnerError as RunnerError
from pytest_llem.errors import ServerError as ServerError
from pytest_llem.errors import SettingsError as SettingsError
from pytest_llem.errors import StoreError as StoreError
from pytest_llem.errors import StudyError as StudyError
from pytest_llem.errors import WorkerError as WorkerError
from pytest_llem.errors import WorkloadError as WorkloadError
from pytest_llem.job.config import WorkloadSettings as WorkloadSettings
from pytest_llem.job.measurement import EnergyReport as EnergyReport
from pytest_llem.job.measurement import Window as Window
from pytest_llem.job.measurement import WindowEnergy as WindowEnergy
from pytest_llem.results import Result as Result
from pytest_llem.results import Results as Results
from pytest_llem.results import load as load
from pytest_llem.results.gates import Verdict as Verdict
from pytest_llem.results.gates import judge_budget as judge_budget
from pytest_llem.results.gates import judge_ratio as judge_ratio
from pytest_llem.results.gates import judge_runs as judge_runs
from pytest_llem.results.metrics import Metric as Metric
from pytest_llem.session.code_meter import CodeMeter as CodeMeter

__version__: str

__all__ = [
    "Capabilities",
    "CodeMeter",
    "Completion",
    "DeviceError",
    "DockerError",
    "EnergyReport",
    "Engine",
    "EngineError",
    "EngineNotInstalledError",
    "EngineSettingError",
    "LlemError",
    "Meter",
    "MeterError",
    "MeterRequest",
    "Metric",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "Request",
    "Result",
    "Results",
    "RunnerError",
    "ServerError",
    "SettingsError",
    "StoreError",
    "StudyError",
    "Tokenizer",
    "Verdict",
    "Window",
    "WindowEnergy",
    "WorkerError",
    "WorkloadError",
    "WorkloadSettings",
    "__version__",
    "judge_budget",
    "judge_ratio",
    "judge_runs",
    "load",
    "translate_docker_error",
]
