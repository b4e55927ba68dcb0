from .case import case

SEQUENCE, IMAGE, VOLUME = (2, 5, 4), (2, 4, 3, 4), (2, 3, 2, 4, 3)

CASES = {
    "conv_transpose1d": case(lambda nn: nn.ConvTranspose1d(4, 6, 3), SEQUENCE),
    "conv_transpose1d, no bias": case(lambda nn: nn.ConvTranspose1d(4, 6, 2, 2, bias=False), SEQUENCE),
    "conv_transpose1d, everything": case(lambda nn: nn.ConvTranspose1d(4, 6, 3, 3, 1, 2, 2), SEQUENCE),
    "conv_transpose2d": case(lambda nn: nn.ConvTranspose2d(4, 6, 3), IMAGE),
    "conv_transpose2d, no bias": case(lambda nn: nn.ConvTranspose2d(4, 6, (3, 1), 2, bias=False), IMAGE),
    "conv_transpose2d, everything": case(lambda nn: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 2), (1, 2), (1, 0)), IMAGE),
    "conv_transpose3d": case(lambda nn: nn.ConvTranspose3d(3, 4, 2), VOLUME),
    "conv_transpose3d, no bias": case(lambda nn: nn.ConvTranspose3d(3, 4, (1, 2, 3), 2, bias=False), VOLUME),
    "conv_transpose3d, everything": case(
        lambda nn: nn.ConvTranspose3d(3, 4, (3, 2, 2), (2, 1, 3), (1, 0, 2), (1, 2, 3), (1, 0, 2)), VOLUME
    ),
}
