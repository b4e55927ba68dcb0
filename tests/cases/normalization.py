from .case import case, in_eval_mode

CASES = {
    "layer_norm": case(lambda nn: nn.LayerNorm(4), (2, 3, 4)),
    "layer_norm, no bias": case(lambda nn: nn.LayerNorm(4, 1e-2, bias=False), (2, 4)),
    "layer_norm, not affine": case(lambda nn: nn.LayerNorm(4, affine=False), (2, 4)),
    "layer_norm, one vector": case(lambda nn: nn.LayerNorm(4), (4,)),
    "rms_norm": case(lambda nn: nn.RMSNorm(4, 1e-3), (2, 3, 4)),
    "rms_norm, one vector": case(lambda nn: nn.RMSNorm(4), (4,)),
    "batch_norm": case(lambda nn: nn.BatchNorm(4), (5, 4)),
    "batch_norm, sequence": case(lambda nn: nn.BatchNorm(4, 1e-3, 0.3), (5, 2, 4)),
    "batch_norm, image": case(lambda nn: nn.BatchNorm(4, affine=False), (2, 6, 6, 4)),
    "batch_norm, untracked": case(lambda nn: nn.BatchNorm(4, track_running_stats=False), (2, 6, 6, 4)),
    "batch_norm, eval": case(lambda nn: in_eval_mode(nn.BatchNorm(4)), (2, 6, 6, 4)),
    "batch_norm, untracked, eval": case(lambda nn: in_eval_mode(nn.BatchNorm(4, 1e-3, 0.1, False, False)), (5, 4)),
    "group_norm": case(lambda nn: nn.GroupNorm(2, 6), (2, 5, 5, 6)),
    "group_norm, vectors": case(lambda nn: nn.GroupNorm(2, 6, 1e-2), (3, 6)),
    "group_norm, not affine": case(lambda nn: nn.GroupNorm(3, 6, affine=False), (2, 5, 6)),
    "group_norm, of PyTorch": case(lambda nn: nn.GroupNorm(2, 6, 1e-3, pytorch_compatible=True), (2, 5, 5, 6)),
    "group_norm, of PyTorch, vectors": case(lambda nn: nn.GroupNorm(2, 6, 1e-2, False, True), (3, 6)),
    "instance_norm": case(lambda nn: nn.InstanceNorm(4), (2, 5, 5, 4)),
    "instance_norm, sequence": case(lambda nn: nn.InstanceNorm(4, 1e-2, affine=True), (2, 5, 4)),
    "instance_norm, volume": case(lambda nn: nn.InstanceNorm(4, affine=True), (2, 3, 2, 5, 4)),
}
