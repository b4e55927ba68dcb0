from .case import case

CASES = {
    "sequential": case(lambda nn: nn.Sequential(nn.Linear(3, 4), nn.gelu, nn.Sequential(nn.Dropout()), nn.RMSNorm(4)), (2, 3)),
}
