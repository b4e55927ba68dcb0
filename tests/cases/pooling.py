from .case import Case, case

SEQUENCE, LONG = (2, 6, 3), (2, 7, 3)
IMAGE, WIDE = (2, 6, 6, 4), (2, 7, 5, 4)
CUBE, VOLUME = (2, 4, 4, 4, 2), (2, 5, 3, 6, 2)


def pools(kind: str) -> dict[str, Case]:
    def case_of(rank: int, x: tuple[int, ...], *arguments, **options) -> Case:
        return case(lambda nn: getattr(nn, f"{kind}Pool{rank}d")(*arguments, **options), x)

    return {
        "1d, tiled": case_of(1, SEQUENCE, 2),
        "1d, cut": case_of(1, LONG, (2,)),
        "1d, overlapping": case_of(1, LONG, 3, stride=2, padding=1),
        "1d, with gaps": case_of(1, LONG, 1, 3),
        "2d, tiled": case_of(2, IMAGE, 2),
        "2d, tiled and padded": case_of(2, IMAGE, (3, 2), padding=(3, 0)),
        "2d, cut": case_of(2, WIDE, 2),
        "2d, overlapping": case_of(2, WIDE, (3, 2), (2, 1), (1, 0)),
        "3d, tiled": case_of(3, CUBE, (2, 1, 4)),
        "3d, cut": case_of(3, VOLUME, 2),
        "3d, overlapping": case_of(3, VOLUME, (3, 2, 1), (1, 1, 2), (1, 0, 2)),
    }


CASES = {f"{kind.lower()}_pool{name}": each for kind in ("Max", "Avg") for name, each in pools(kind).items()}
