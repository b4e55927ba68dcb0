from .case import case, in_eval_mode

SHORT, BATCH, ONE, GRID = (2, 2, 3), (2, 3, 3), (3, 3), (2, 2, 2, 3)

CASES = {
    "rnn": case(lambda nn: nn.RNN(3, 4), SHORT),
    "rnn, one sequence": case(lambda nn: nn.RNN(3, 4), ONE),
    "rnn, one step": case(lambda nn: nn.RNN(3, 4), (2, 1, 3)),
    "rnn, state": case(lambda nn: nn.RNN(3, 4), BATCH, (2, 4)),
    "rnn, states of one sequence": case(lambda nn: nn.RNN(3, 4), ONE, (5, 4)),
    "rnn, two batch axes": case(lambda nn: nn.RNN(3, 4), GRID, (2, 2, 4)),
    "rnn, no bias": case(lambda nn: nn.RNN(3, 4, bias=False), BATCH, (2, 4)),
    "rnn, function": case(lambda nn: nn.RNN(3, 4, True, nn.gelu), BATCH),
    "rnn, module": case(lambda nn: nn.RNN(3, 4, nonlinearity=nn.Linear(4, 4)), BATCH, (2, 4)),
    "gru": case(lambda nn: nn.GRU(3, 4), SHORT),
    "gru, one sequence": case(lambda nn: nn.GRU(3, 4), ONE),
    "gru, one step": case(lambda nn: nn.GRU(3, 4), (2, 1, 3), (2, 4)),
    "gru, state": case(lambda nn: nn.GRU(3, 4), BATCH, (2, 4)),
    "gru, one state": case(lambda nn: nn.GRU(3, 4), BATCH, (4,)),
    "gru, states of one sequence": case(lambda nn: nn.GRU(3, 4), ONE, (5, 4)),
    "gru, two batch axes": case(lambda nn: nn.GRU(3, 4), GRID, (2, 2, 4)),
    "gru, no bias": case(lambda nn: nn.GRU(3, 4, bias=False), BATCH),
    "gru, no bias, state": case(lambda nn: nn.GRU(3, 4, False), BATCH, (2, 4)),
    "gru, eval": case(lambda nn: in_eval_mode(nn.GRU(3, 4)), BATCH),
    "lstm": case(lambda nn: nn.LSTM(3, 4), SHORT),
    "lstm, one sequence": case(lambda nn: nn.LSTM(3, 4), ONE, (4,), (4,)),
    "lstm, one step": case(lambda nn: nn.LSTM(3, 4), (2, 1, 3)),
    "lstm, state and cell": case(lambda nn: nn.LSTM(3, 4), BATCH, (2, 4), (2, 4)),
    "lstm, state": case(lambda nn: nn.LSTM(3, 4), BATCH, (2, 4)),
    "lstm, cell": case(lambda nn: nn.LSTM(3, 4), BATCH, None, (4,)),
    "lstm, two batch axes": case(lambda nn: nn.LSTM(3, 4), GRID, (2, 2, 4), (2, 2, 4)),
    "lstm, no bias": case(lambda nn: nn.LSTM(3, 4, bias=False), BATCH, (2, 4), (2, 4)),
}
