from .case import case

CASES = {
    "identity": case(lambda nn: nn.Identity(1, a=2), (2, 3)),
    "linear": case(lambda nn: nn.Linear(3, 4), (2, 3)),
    "linear, batched": case(lambda nn: nn.Linear(3, 4), (5, 2, 3)),
    "linear, one vector": case(lambda nn: nn.Linear(3, 4), (3,)),
    "linear, no bias": case(lambda nn: nn.Linear(3, 4, bias=False), (2, 3)),
    "bilinear": case(lambda nn: nn.Bilinear(3, 4, 5), (2, 3), (2, 4)),
    "bilinear, batched": case(lambda nn: nn.Bilinear(3, 4, 5), (3, 2, 3), (3, 2, 4)),
    "bilinear, one vector each": case(lambda nn: nn.Bilinear(3, 4, 5), (3,), (4,)),
    "bilinear, one second vector": case(lambda nn: nn.Bilinear(3, 4, 5), (2, 3), (4,)),
    "bilinear, no bias": case(lambda nn: nn.Bilinear(3, 4, 1, bias=False), (2, 3), (2, 4)),
}
