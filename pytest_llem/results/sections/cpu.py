"""The section `cpu`: whether the measured processes got the CPU time that they asked for, and the notes that follow.

`derive` calls it. Its figure is part of the results: another definition needs another name.
"""

from __future__ import annotations

from pytest_llem.job.config import DeviceKind, Thresholds
from pytest_llem.job.measurement import CpuTime, EnergyReport, Measurement
from pytest_llem.job.report import Note
from pytest_llem.results.schema import CpuSection
from pytest_llem.results.sections.energy import MEASURE

CONTENDED = "cpu_contended"

OTHERS_REL = 0.1
"""Chosen: about as much of the energy above idle is then that of other work; a quiet machine stays below."""

MIN_PRESSURE_S = 10.0
"""Chosen: Linux renews the total every 2 s (kernel/sched/psi.c, PSI_FREQ), and five of those are within 20 %."""


def derive_cpu(cpu: CpuTime | None) -> CpuSection | None:
    """The section. Steal is counted for the machine: of it the processes have their share of the work done."""
    if cpu is None:
        return None
    stolen_s = cpu.ran_s * cpu.stolen_s / cpu.busy_s if cpu.stolen_s is not None and cpu.busy_s else None
    lost_s = cpu.waited_s + (stolen_s or 0.0)
    demand_s = cpu.ran_s + lost_s
    pressure_known = cpu.pressure_s is not None and cpu.duration_s >= MIN_PRESSURE_S
    return CpuSection(
        contended_rel=lost_s / demand_s if demand_s else None,
        ran_s=cpu.ran_s,
        waited_s=cpu.waited_s,
        stolen_s=stolen_s,
        steal_rel=cpu.stolen_s / (cpu.busy_s + cpu.stolen_s) if cpu.stolen_s is not None and cpu.busy_s else None,
        pressure_rel=min(1.0, (cpu.pressure_s or 0.0) / cpu.duration_s) if pressure_known else None,
        throttled_s=cpu.throttled_s,
        cpus=cpu.cpus,
        others_rel=max(0.0, 1 - cpu.ran_s / cpu.machine_busy_s) if cpu.machine_busy_s else None,
    )


def shared(measurement: Measurement) -> Note | None:
    """`cpu_shared` where other work drew a part of the energy that is stated: CPU meters count the whole machine."""
    section = derive_cpu(measurement.cpu)
    return None if measurement.energy is None or section is None else shared_by(measurement.energy, section.others_rel)


def shared_by(energy: EnergyReport, share: float | None) -> Note | None:
    """The same for a `share` of the machine's work that was others'."""
    if not energy.scope.startswith("cpu_package") or share is None or share <= OTHERS_REL:
        return None
    text = f"{share:.0%} of the work of the machine's CPUs was not that of the measured processes"
    return Note("cpu_shared", f"{text}, and {energy.meter} counts its energy as well: end other work on the machine")


def contended(measurement: Measurement, kind: DeviceKind, limits: Thresholds) -> tuple[Note | None, Note | None]:
    """`cpu_contended` as a reason against the result, where it ran on the CPU, and as a warning.

    The share of the demand must be beyond a limit, and so must that of the window: what hardly runs, as the client of a
    server elsewhere, loses no more time than it waits. Rest on the window's sides is no part of it.
    """
    cpu, section = measurement.cpu, derive_cpu(measurement.cpu)
    if cpu is None or section is None or section.contended_rel is None or not cpu.duration_s:
        return None, None
    lost_s = section.waited_s + (section.stolen_s or 0.0)
    window_s = sum(window.duration_s for window in measurement.windows if window.name == MEASURE)
    share = min(section.contended_rel, lost_s / min(cpu.duration_s, window_s or cpu.duration_s))
    note = Note(CONTENDED, _text(section, lost_s))
    invalid = kind == "cpu" and share > limits.cpu_contended_rel
    return note if invalid else None, note if share > limits.cpu_contended_warn_rel and not invalid else None


def _text(section: CpuSection, lost_s: float) -> str:
    also = ""
    if section.throttled_s:
        also = f", {section.throttled_s:.1f} s of it held back by a CPU quota"
    elif section.stolen_s and section.stolen_s > section.waited_s:
        also = f", {section.stolen_s:.1f} s of it stolen by the hypervisor"
    return (
        f"the measured processes ran {section.ran_s:.1f} s and waited {lost_s:.1f} s for a CPU{also}: "
        f"{section.contended_rel:.0%} of what they asked of {section.cpus} CPU{'s' * (section.cpus != 1)}; "
        "end other work on the machine, or let the engine use fewer threads (OMP_NUM_THREADS)"
    )
