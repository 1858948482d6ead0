"""From a stage to a `torch.export` program that holds only the weights that it reads."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from vla_mot.infer.export.stages import Stage

_BATCH_AXIS = {"keys": 1, "values": 1}  # 0 for every other tensor
_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)


def batch_axis(name: str) -> int:
    """The axis of a stage's argument or result along which samples lie."""
    return _BATCH_AXIS.get(name, 0)


@torch.no_grad()
def capture(stage: Stage, given: Mapping[str, Tensor], *, any_batch: bool = False) -> ExportedProgram:
    """Trace a stage on its arguments by name; every size that is not `any_batch`'s is fixed.

    any_batch: the program takes any number of samples; two or more must be given here, or torch would fix it at one.
    """
    arguments = tuple(given[name] for name in stage.inputs)
    batch = Dim("batch", min=1)
    shapes = {name: {batch_axis(name): batch} for name in stage.inputs} if any_batch else None
    program = torch.export.export(stage.eval(), arguments, dynamic_shapes=shapes)
    _drop_unread(program)
    return program


def _drop_unread(program: ExportedProgram) -> None:
    """Remove the weights that no operation reads: every stage is traced with the whole model's."""
    signature = program.graph_signature
    weights = {spec.arg.name: spec for spec in signature.input_specs if spec.kind in _WEIGHTS}
    for node in list(program.graph.find_nodes(op="placeholder")):
        if node.name in weights and not node.users:
            program.graph.erase_node(node)
            unread = weights.pop(node.name)
            signature.input_specs.remove(unread)
            for held in (program.state_dict, program.constants):
                held.pop(unread.target, None)
    program.graph_module.recompile()
