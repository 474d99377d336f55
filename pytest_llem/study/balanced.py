"""The order `balanced`: rows in which each experiment follows each other one equally often.

`Study.schedule` takes a row per cycle, and the session says what so many rows balance. The rows and their order must
stay: a study that is measured again runs in the same order.

Design
    A Williams design (E. J. Williams, Australian Journal of Scientific Research A 2, 1949, 149-168; B. Jones and M. G.
    Kenward, "Design and Analysis of Cross-Over Trials", 3rd edition, 2014, chapter 4). The first row is 1, 2, n, 3,
    n - 1, ..., the others are it with a number added (modulo n). An even number of experiments takes n rows, in which
    each follows each other one once; an odd number takes two such squares, 2 n rows, in which it does so twice.

    Here each row is followed by its mirror image, so that over two cycles every experiment has the same mean position,
    and a drift that is linear in time falls on all alike. Of an even n the mirror image is a row of the same square, of
    an odd one a row of the second. Fewer cycles than rows take the first ones, and these are the best part of the
    design that there is: none of n rows of an even square shares a pair with another; of an odd one a row shares pairs
    only with those that are (n - 1) / 2 further and before, and a row of the other square runs the other way, so that
    no pair comes twice in the first n - 1 rows.

    The last experiment of a row and the first one of the next row are neighbours in time as well: each pair of a row
    and its mirror image begins with the experiment that ended before it.
"""

from __future__ import annotations

from collections.abc import Iterator


def rows_of_design(count: int) -> int:
    """How many cycles of so many experiments a whole design takes."""
    return count if count % 2 == 0 or count == 1 else 2 * count


def rows(count: int, cycles: int) -> Iterator[tuple[int, list[int]]]:
    """For each cycle which repetition of the design it is of, from 0, and the order of the experiments' numbers."""
    if not count:
        return
    first = [(step + 1) // 2 if step % 2 else (count - step // 2) % count for step in range(count)]
    whole = rows_of_design(count)
    for cycle in range(cycles):
        repetition, row = divmod(cycle, whole)
        shifted = [(place + row // 2) % count for place in first]
        yield repetition, shifted[::-1] if row % 2 else shifted


def follows(count: int, cycles: int) -> tuple[int, int]:
    """How often an experiment follows another one within the cycles: at least, and at most."""
    times, rest = divmod(cycles, rows_of_design(count))
    if count % 2 == 0 or rest < count:
        return times * (1 + count % 2), times * (1 + count % 2) + (rest > 0)
    return 2 * times + (rest > count), 2 * times + 2


def balance(count: int, cycles: int) -> str:
    """What so many cycles of so many experiments balance, in words; empty for a single experiment."""
    if count < 2:
        return ""
    least, most = follows(count, cycles)
    if least == most:
        return f"within the cycles each experiment follows each other one {_times(least)}"
    whole = rows_of_design(count)
    if most == 1:
        share = f"{100 * cycles / count:.0f} %"
        some = f"{share} of the ordered pairs of experiments follow once, the others never"
    else:
        some = f"within the cycles an experiment follows another one {least} to {most} times"
    more = -(-cycles // whole) * whole
    return f"cycles: {cycles} is no multiple of the design's {whole} rows: {some}; cycles: {more} balances all"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
