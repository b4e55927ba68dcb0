from .case import case

SEQUENCE, IMAGE, WIDE, VOLUME = (2, 9, 4), (2, 6, 6, 4), (2, 7, 5, 4), (2, 5, 4, 6, 3)

CASES = {
    "conv1d": case(lambda nn: nn.Conv1d(4, 6, 3), SEQUENCE),
    "conv1d, no bias": case(lambda nn: nn.Conv1d(4, 6, 1, bias=False), SEQUENCE),
    "conv1d, everything": case(lambda nn: nn.Conv1d(4, 6, 3, 2, 1, 2, 2), SEQUENCE),
    "conv1d, a group for each channel": case(lambda nn: nn.Conv1d(4, 4, 2, groups=4), SEQUENCE),
    "conv2d": case(lambda nn: nn.Conv2d(4, 6, 3), IMAGE),
    "conv2d, no bias": case(lambda nn: nn.Conv2d(4, 6, (3, 1), bias=False), WIDE),
    "conv2d, everything": case(lambda nn: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2), WIDE),
    "conv2d, padded by less than nothing": case(lambda nn: nn.Conv2d(4, 6, 2, padding=-1), IMAGE),
    "conv3d": case(lambda nn: nn.Conv3d(3, 4, 3), VOLUME),
    "conv3d, no bias": case(lambda nn: nn.Conv3d(3, 4, (2, 1, 3), bias=False), VOLUME),
    "conv3d, everything": case(lambda nn: nn.Conv3d(3, 4, (3, 2, 2), (2, 1, 2), (1, 0, 2), (1, 2, 3)), VOLUME),
}
