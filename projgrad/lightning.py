"""Callbacks for Lightning, beside projgrad.torch."""

try:
    import lightning.pytorch as _lightning  # noqa: F401
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError('projgrad.lightning needs PyTorch and Lightning: pip install "projgrad[lightning]"') from error

from projgrad_backends.torch.lightning import ProjectCallback, ReportCallback

__all__ = [
    "ProjectCallback",
    "ReportCallback",
]
