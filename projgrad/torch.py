"""projgrad for PyTorch."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError('projgrad.torch needs PyTorch: pip install "projgrad[torch]"') from error

from projgrad_backends.torch.inplace import project_ as project_
from projgrad_backends.torch.metric import register_metric as register_metric
from projgrad_backends.torch.optimizer import ProjectedOptimizer as ProjectedOptimizer
from projgrad_backends.torch.parameters import constrain as constrain
from projgrad_backends.torch.params import audit as audit
from projgrad_backends.torch.params import project_params as project_params
from projgrad_backends.torch.params import violations as violations
from projgrad_backends.torch.report import report as report
from projgrad_backends.torch.spg import SPG as SPG
