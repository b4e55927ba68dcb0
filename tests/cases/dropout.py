from .case import case, in_eval_mode

CASES = {
    "dropout": case(lambda nn: nn.Dropout(0.3), (20, 3)),
    "dropout, nothing": case(lambda nn: nn.Dropout(0.0), (2, 3)),
    "dropout, eval": case(lambda nn: in_eval_mode(nn.Dropout()), (2, 3)),
    "dropout2d": case(lambda nn: nn.Dropout2d(0.3), (4, 2, 3, 5)),
    "dropout2d, one image": case(lambda nn: nn.Dropout2d(), (2, 3, 20)),
    "dropout2d, nothing": case(lambda nn: nn.Dropout2d(0.0), (4, 2, 3, 5)),
    "dropout2d, eval": case(lambda nn: in_eval_mode(nn.Dropout2d()), (4, 2, 3, 5)),
    "dropout3d": case(lambda nn: nn.Dropout3d(0.3), (4, 2, 3, 2, 5)),
    "dropout3d, one volume": case(lambda nn: nn.Dropout3d(), (2, 3, 2, 20)),
    "dropout3d, nothing": case(lambda nn: nn.Dropout3d(0.0), (4, 2, 3, 2, 5)),
    "dropout3d, eval": case(lambda nn: in_eval_mode(nn.Dropout3d()), (4, 2, 3, 2, 5)),
}
