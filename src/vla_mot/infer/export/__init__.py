"""Programs that run without this library: the model's stages as `torch.export` programs, ONNX, or compiled packages."""

from vla_mot.infer.export.policy import ExportedPolicy
from vla_mot.infer.export.writing import ExportOptions, export_policy, widen

__all__ = ["ExportOptions", "ExportedPolicy", "export_policy", "widen"]
