"""Which operations a StableHLO program has, how often, whatever functions they stand in."""

import collections
import functools
from collections import Counter

#: What only says where other operations stand.
LEFT_OUT = {"func.func", "func.call", "func.return", "stablehlo.return", "sdy.return"}
#: Operations whose operands are what their bodies use, in the order in which tracing meets it.
UNORDERED = {"stablehlo.while", "sdy.manual_computation"}


def operations(text: str) -> Counter[str]:
    """{'op (operand types) -> (result types)': how often} of a program's text.

    A function's operations count as often as it is called from `main`, by others too, as if all of
    them were inlined; those in regions (bodies of loops, branches, reductions) count once. A custom
    call's target is part of its name; that it is a kernel's, and what it holds, is not looked at.
    Operands and results of `UNORDERED` operations are sorted by type. Attributes, shardings, places
    and the names of values are ignored.

    Raises:
      ValueError: functions call each other in a circle, or one that is not there.
    """
    from jax._src.interpreters.mlir import make_ir_context
    from jaxlib.mlir import ir

    with make_ir_context():
        module = ir.Module.parse(text)
        functions = {
            ir.StringAttr(op.attributes["sym_name"]).value: op.operation
            for op in module.body.operations
            if op.operation.name == "func.func"
        }

        @functools.cache
        def own(name: str) -> tuple[Counter[str], Counter[str]]:
            """(operations that stand in a function, functions that it calls)."""
            if name not in functions:
                raise ValueError(f"no function {name!r}")
            found: Counter[str] = collections.Counter()
            calls: Counter[str] = collections.Counter()

            def visit(op):
                op = op.operation
                if op.name == "func.call":
                    calls[ir.FlatSymbolRefAttr(op.attributes["callee"]).value] += 1
                elif op.name not in LEFT_OUT:
                    found[_described(op)] += 1
                return ir.WalkResult.ADVANCE

            functions[name].walk(visit)
            return found, calls

        def inlined(name: str, above: tuple[str, ...]) -> Counter[str]:
            if name in above:
                raise ValueError(f"{name!r} calls itself")
            if name not in done:
                found, calls = own(name)
                total = Counter(found)
                for callee, times in calls.items():
                    for key, count in inlined(callee, (*above, name)).items():
                        total[key] += times * count
                done[name] = total
            return done[name]

        done: dict[str, Counter[str]] = {}
        return Counter(inlined("main", ()))


def _described(op) -> str:
    from jaxlib.mlir import ir

    name = op.name
    if name == "stablehlo.custom_call":
        name += f"@{ir.StringAttr(op.attributes['call_target_name']).value}"
    types = [[str(value.type) for value in values] for values in (op.operands, op.results)]
    if op.name in UNORDERED:
        types = [sorted(each) for each in types]
    operands, results = (", ".join(each) for each in types)
    return f"{name} ({operands}) -> ({results})"


def by_name(found: Counter[str]) -> dict[str, int]:
    """How often each operation stands there, whatever it takes and gives."""
    total: Counter[str] = collections.Counter()
    for key, count in found.items():
        total[key.partition(" ")[0]] += count
    return dict(sorted(total.items()))
