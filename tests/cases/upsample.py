from .case import case

SEQUENCE, IMAGE, VOLUME = (2, 5, 3), (2, 4, 5, 2), (1, 2, 3, 2, 2)

CASES = {
    "upsample": case(lambda nn: nn.Upsample(2), IMAGE),
    "upsample, fractions": case(lambda nn: nn.Upsample((1.5, 0.5)), IMAGE),
    "upsample, sequence": case(lambda nn: nn.Upsample((3,)), SEQUENCE),
    "upsample, volume": case(lambda nn: nn.Upsample((2, 1, 3), "nearest", True), VOLUME),
    "upsample, linear": case(lambda nn: nn.Upsample((2, 1.7), mode="linear"), IMAGE),
    "upsample, linear, smaller": case(lambda nn: nn.Upsample(0.5, "linear"), IMAGE),
    "upsample, linear, aligned": case(lambda nn: nn.Upsample(2, "linear", True), IMAGE),
    "upsample, linear, smoothed": case(lambda nn: nn.Upsample((0.5, 0.3), "linear", antialias=True), IMAGE),
    "upsample, linear, sequence": case(lambda nn: nn.Upsample(1.5, "linear"), SEQUENCE),
    "upsample, linear, volume": case(lambda nn: nn.Upsample(2, "linear", align_corners=True), VOLUME),
    "upsample, cubic": case(lambda nn: nn.Upsample((2, 0.5), "cubic"), IMAGE),
    "upsample, cubic, aligned": case(lambda nn: nn.Upsample(1.5, "cubic", align_corners=True), SEQUENCE),
    "upsample, cubic, smoothed": case(lambda nn: nn.Upsample((0.5, 1.5), "cubic", False, True), IMAGE),
}
