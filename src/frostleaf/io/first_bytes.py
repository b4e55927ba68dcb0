"""What a file is by its first bytes, whatever its name is: one of weights, or what another program has written."""

from __future__ import annotations

import re

from .safetensors import read_beginning

_LENGTH = 256

_READ = "read it with what wrote it, and give load_weights a dict of dotted names and MLX's arrays"
# A length of eight bytes, as safetensors files begin with, has a zero where these have none.
_OTHERS = (
    (
        rb"\x80[\x02-\x05][^\0]|PK\x03\x04.{0,200}/data\.pkl",
        "is a pickle, as torch.save and pickle.dump write, and reading one may run anything: "
        f"safetensors.torch.save_file(torch.load(file, weights_only=True), new) makes one of PyTorch readable. Else {_READ}",
    ),
    (rb"\x89HDF\r\n\x1a\n", f"is an HDF5 file, as h5py and Keras write: {_READ}"),
    (
        rb"\x93NUMPY",
        "has arrays without names, as mx.save, np.save and Equinox write: give load_weights a dict of dotted names and arrays, "
        "such as {'weight': mx.load(file, format='npy')}",
    ),
    (
        rb"version https://git-lfs",
        "is a pointer of Git LFS to a file that was not fetched: git lfs pull, in the repository that was cloned, puts it in "
        "its place",
    ),
    (rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa1-\xbf]|\xd9.)[ -~]", f"is MessagePack, as Flax writes: {_READ}"),
)
_FORMATS = ((rb".{8}\{", ".safetensors"), (rb"PK(?:\x03\x04|\x05\x06)", ".npz"), (rb"GGUF", ".gguf"))


def identify(file: str) -> tuple[str, str]:
    """Return what a file is by its first bytes.

    Returns:
        The ending that such files of weights have, and why it can't be read, with what to do instead. Either is an empty string
        if that isn't known.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is a directory, a pipe or a device.
    """
    start = read_beginning(file, _LENGTH)
    ending, reason = (
        next((told for pattern, told in known if re.match(pattern, start, re.DOTALL)), "") for known in (_FORMATS, _OTHERS)
    )
    return ending, "" if ending == ".safetensors" else reason
